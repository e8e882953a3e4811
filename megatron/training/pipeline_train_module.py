"""Training steps of a model that is split into pipeline stages (1F1B, by DeepSpeed's pipeline engine)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from megatron.training.objective import Batch, Tally, Target
from megatron.training.optimizer import hold
from megatron.training.train_module import Fault, StepOutcome, TrainModule, accept_all, fault_of


def reduce_norm_once(optimizer: Any) -> None:
    """Make ZeRO 1 sum its gradient norm over the stages once, instead of once per parameter group.

    Stages hold different groups (only the first has that of the embedding), so one collective per group would hang. A
    negative norm is DeepSpeed's mark for a gradient that is not finite.
    """
    over_own_groups = getattr(optimizer, "scaled_global_norm", None)
    if over_own_groups is None:  # ZeRO 0, and the bf16 optimizer, reduce once
        return
    group = optimizer.model_parallel_group
    optimizer._model_parallel_all_reduce = lambda tensor, op: None

    def over_all_stages(norm_type: int = 2) -> Tensor:
        own = torch.as_tensor(over_own_groups(norm_type), dtype=torch.float32)
        squares = torch.where(own < 0, torch.nan, own.square())
        torch.distributed.all_reduce(squares, group=group)
        return torch.where(squares.isnan(), -1.0, squares.sqrt())

    optimizer.scaled_global_norm = over_all_stages


class PipelineTrainModule(TrainModule):
    """One pipeline stage of a model in training. Every stage must call the same methods."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # the schedule of the engine makes the update, so the loss must be checked inside it
        self._update = self.engine._take_model_step
        self._refuse: Callable[[float], bool] = accept_all
        self._refused: Fault | None = None
        self.engine._take_model_step = self._checked_update
        reduce_norm_once(self.engine.optimizer)

    @property
    def layer_bounds(self) -> tuple[int, ...]:
        return tuple(self.engine.module.parts)

    def _checked_update(self, *args: Any) -> None:
        loss, engine = self.engine.total_loss, self.engine
        total = torch.zeros((), device=self.runtime.device)
        if loss is not None:  # on the last stage
            total += loss.detach() / engine.gradient_accumulation_steps()
        if self.runtime.world_size > 1:
            torch.distributed.all_reduce(total)
        self._refused = fault_of(
            float(total) / (self.runtime.world_size // self.runtime.groups.pipe.size), self._refuse
        )
        with hold(self._torch_optimizer) if self._refused else nullcontext():
            self._update(*args)

    def _pairs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Target]]:
        return (self.objective.split(batch) for batch in batches)

    def train_step(
        self, batches: Iterator[Batch], stop: bool = False, refuse: Callable[[float], bool] = accept_all
    ) -> StepOutcome:
        """Like TrainModule.train_step: runs the whole pipeline schedule of one global batch."""
        self._refuse = refuse
        reads = self.engine.is_first_stage() or self.engine.is_last_stage()
        loss = self.engine.train_batch(self._pairs(self._next_step(batches) if reads else ()))
        stopped = self.runtime.mean(torch.tensor(float(stop), device=self.runtime.device))
        return StepOutcome(float(loss), bool(stopped > 0), self._after_step(self._refused))

    def evaluate(self, batches: Iterator[Batch], microbatches: int) -> float:
        """Like TrainModule.evaluate. Only the first and the last stage read the data."""
        was_training, tally = self.engine.training, Tally(self.objective)
        try:
            loss = self.engine.eval_batch(self._pairs(tally.of(batches)), num_micro_batches=microbatches)
            return float(loss) / self._share(tally)
        finally:
            self.engine.train(was_training)
