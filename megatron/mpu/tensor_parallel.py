"""What a layer needs to know of tensor parallelism, in one small object."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from megatron.mpu.communicator import SINGLE, Communicator
from megatron.mpu.random import DropoutStreams


@dataclass(frozen=True, eq=False)
class TensorParallel:
    """The tensor-parallel group, whether the parts between its regions are cut over the sequence, and the
    streams that dropout draws from (None: torch's default generators for all).
    """

    group: Communicator = SINGLE
    sequence_parallel: bool = False
    streams: DropoutStreams | None = None

    @property
    def cuts_sequence(self) -> bool:
        """Whether hidden states outside the regions are [b, s / n, h]."""
        return self.sequence_parallel and self.group.size > 1

    def inside(self) -> AbstractContextManager[None]:
        """Context for dropout where the ranks hold different activations."""
        return self.streams.inside() if self.streams is not None else nullcontext()

    def hidden_dropout(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Dropout of hidden states outside the tensor-parallel regions: one mask for all ranks, or one a slice."""
        if not p or not training:
            return x
        if not self.cuts_sequence:
            return F.dropout(x, p)
        with self.inside():
            return F.dropout(x, p)


SERIAL = TensorParallel()
