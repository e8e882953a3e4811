"""A model in training: one step, and one evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron.errors import TrainingError
from megatron.initialize import Runtime
from megatron.model.build import ModelPlan
from megatron.model.gpt import GPT, layer_list
from megatron.training.learning_rates import Scheduler
from megatron.training.objective import Batch, Objective

if TYPE_CHECKING:
    from megatron.model.pipeline import PipelinedGPT  # imports DeepSpeed


def non_finite(loss: float, step: int) -> TrainingError:
    """The error that all processes raise, instead of making an update, if the loss is not finite."""
    return TrainingError(
        f"the loss is {loss} at step {step}, so the update was not made. Lower lr, lengthen warmup, or clip "
        "gradients; with fp16 prefer bfloat16"
    )


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

    def train_step(self, batches: Iterator[Batch], stop: bool = False) -> tuple[float, bool]:
        """Make one update from gradient_accumulation_steps microbatches.

        Returns the mean loss of the global batch, and whether any process was asked to stop. If the loss is not
        finite, raises TrainingError on all processes before the update.
        """
        engine, mean, stopped = self.engine, 0.0, 0.0
        microbatches = engine.gradient_accumulation_steps()
        total = torch.zeros(2, device=self.runtime.device)
        for microbatch in range(microbatches):
            loss = self._loss(next(batches))
            engine.backward(loss)
            total[0] += loss.detach() / microbatches
            if microbatch == microbatches - 1:
                total[1] = float(stop)
                mean, stopped = self.runtime.mean(total).tolist()
                if not torch.isfinite(total[0]):
                    raise non_finite(mean, engine.global_steps + 1)
            engine.step()
        return mean, stopped > 0

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], microbatches: int) -> float:
        """Mean loss in nats per token over `microbatches` microbatches of every process, without dropout."""
        was_training = self.engine.training
        self.engine.eval()
        try:
            losses = [self._loss(batch) for batch in itertools.islice(batches, microbatches)]
            return float(self.runtime.mean(torch.stack(losses).mean()))
        finally:
            self.engine.train(was_training)
