"""The tensor-parallel settings that a layer takes, in one object."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from megatron.mpu.collectives import (
    copy_to_region,
    gather_from_sequence,
    reduce_from_region,
    reduce_scatter_to_sequence,
)
from megatron.mpu.communicator import SINGLE, Communicator
from megatron.mpu.random import DropoutStreams


@dataclass(frozen=True, eq=False)
class TensorParallel:
    """Tensor-parallel settings of a layer.

    group: the tensor-parallel group.
    sequence_parallel: whether hidden states between the tensor-parallel regions are split over the sequence.
    streams: the random streams of dropout; None uses torch's default generators everywhere.
    """

    group: Communicator = SINGLE
    sequence_parallel: bool = False
    streams: DropoutStreams | None = None

    @property
    def cuts_sequence(self) -> bool:
        """Whether hidden states outside the tensor-parallel regions are [b, s / n, h]."""
        return self.sequence_parallel and self.group.size > 1

    def enter(self, x: Tensor) -> Tensor:
        """Enter a tensor-parallel region: [.., s, h], or this rank's slice of s -> [.., s, h].

        The gradients of the ranks are summed, so each rank must use the result for its own part of the work.
        """
        return gather_from_sequence(x, self.group) if self.sequence_parallel else copy_to_region(x, self.group)

    def leave(self, y: Tensor) -> Tensor:
        """Leave a tensor-parallel region: the sum of y [.., s, h] over the ranks, or this rank's slice of s of it."""
        if self.sequence_parallel:
            return reduce_scatter_to_sequence(y, self.group)
        return reduce_from_region(y, self.group)

    def inside(self) -> AbstractContextManager[None]:
        """Context for dropout on activations that differ between the ranks."""
        return self.streams.inside() if self.streams is not None else nullcontext()

    def hidden_dropout(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Dropout outside the tensor-parallel regions: one mask for all ranks, or one mask per sequence slice."""
        if not p or not training:
            return x
        if not self.cuts_sequence:
            return F.dropout(x, p)
        with self.inside():
            return F.dropout(x, p)


SERIAL = TensorParallel()
