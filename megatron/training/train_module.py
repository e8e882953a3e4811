"""A model in training: one step, and one evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from megatron.initialize import Runtime
from megatron.model.build import ModelPlan
from megatron.model.gpt import GPT, layer_list
from megatron.training.learning_rates import Scheduler
from megatron.training.objective import Batch, Objective, Tally
from megatron.training.optimizer import hold

if TYPE_CHECKING:
    from megatron.model.pipeline import PipelinedGPT  # imports DeepSpeed


class Fault(Enum):
    """Why a step is bad, as a clause for messages."""

    LOSS = "the loss is not finite"
    GRADIENT = "the gradient is not finite"
    SPIKE = "the loss is a spike"


class StepOutcome(NamedTuple):
    """Outcome of a training step, equal on all processes.

    loss: mean over the global batch in nats per token. stopped: whether any process was asked to stop. fault: why no
    update was made; None after an update.
    """

    loss: float
    stopped: bool
    fault: Fault | None = None


def accept_all(loss: float) -> bool:
    """Refuse no loss."""
    return False


def fault_of(loss: float, refuse: Callable[[float], bool]) -> Fault | None:
    """The fault of a loss, before the update."""
    if not math.isfinite(loss):
        return Fault.LOSS
    return Fault.SPIKE if refuse(loss) else None


@dataclass
class TrainModule:
    """A model with optimizer and schedule on DeepSpeed's engine."""

    plan: ModelPlan
    engine: Any
    scheduler: Scheduler
    objective: Objective
    runtime: Runtime

    @property
    def model(self) -> GPT | PipelinedGPT:
        """The model of this process, or its pipeline stage."""
        model: GPT | PipelinedGPT = self.engine.module
        return model

    @property
    def layer_bounds(self) -> tuple[int, ...]:
        """Bounds of the pipeline stages: stage i holds layers [bounds[i], bounds[i + 1])."""
        return 0, len(layer_list(self.plan.config, self.plan.factors))

    def grad_norm(self) -> float | None:
        """Norm of the gradient of the last step, before clipping."""
        norm: Tensor | float | None = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def _loss(self, batch: Batch) -> Tensor:
        device = self.runtime.device
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        tokens, target = self.objective.split(batch)
        return self.objective.loss(self.engine(tokens), target, self.engine.training)

    def _next_step(self, batches: Iterator[Batch]) -> Sequence[Batch]:
        """The microbatches of the next step, weighed so that their mean loss is that of the positions that count."""
        taken = [next(batches) for _ in range(self.engine.gradient_accumulation_steps())]
        return self.objective.share_counts(taken, self.runtime.groups.data, self.runtime.device)

    def train_step(
        self, batches: Iterator[Batch], stop: bool = False, refuse: Callable[[float], bool] = accept_all
    ) -> StepOutcome:
        """Make one update from gradient_accumulation_steps microbatches.

        All processes make no update if the loss or the gradient is not finite, or if `refuse(loss)`; weights and
        optimizer stay as they are. The schedule advances in any case: a step keeps its place in it. Overflows of fp16's
        loss scale are not faults: as DeepSpeed does, they make no update and do not advance the schedule.
        """
        engine, mean, stopped, refused = self.engine, 0.0, 0.0, None
        microbatches = engine.gradient_accumulation_steps()
        total = torch.zeros(2, device=self.runtime.device)
        for microbatch, batch in enumerate(self._next_step(batches)):
            loss = self._loss(batch)
            engine.backward(loss)
            total[0] += loss.detach() / microbatches
            if microbatch == microbatches - 1:
                total[1] = float(stop)
                mean, stopped = self.runtime.mean(total).tolist()
                refused = fault_of(mean, refuse)
            with hold(self._torch_optimizer) if refused else nullcontext():
                engine.step()
        return StepOutcome(mean, stopped > 0, self._after_step(refused))

    @property
    def _torch_optimizer(self) -> Any:
        """The optimizer inside DeepSpeed's wrapper, if there is one."""
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def _after_step(self, refused: Fault | None) -> Fault | None:
        """The fault of the step that the engine has just made. Keeps a bad step's place in the schedule."""
        overflow = bool(getattr(self.engine.optimizer, "overflow", False))
        fault = refused
        if fault is None and overflow and not self.engine.fp16_enabled():
            fault = Fault.GRADIENT
        if fault and overflow:  # DeepSpeed has not advanced the schedule
            self.scheduler.step()
        return fault

    def _share(self, tally: Tally) -> float:
        """The share of positions that count, over all processes; above 0."""
        counted, positions = self.runtime.mean(tally.sums.to(self.runtime.device)).tolist()
        return max(float(counted / positions), float(torch.finfo(torch.float32).tiny))

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], microbatches: int) -> float:
        """Mean loss in nats per token over `microbatches` microbatches of every process, without dropout."""
        was_training, tally = self.engine.training, Tally(self.objective)
        self.engine.eval()
        try:
            losses = [self._loss(batch) for batch in tally.of(itertools.islice(batches, microbatches))]
            return float(self.runtime.mean(torch.stack(losses).mean())) / self._share(tally)
        finally:
            self.engine.train(was_training)
