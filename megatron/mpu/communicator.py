"""Process groups with collectives on tensors, and counters of their calls and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Bandwidth-optimal collectives send the whole tensor, without the rank's own part, once (all-gather,
# reduce-scatter) or twice (all-reduce): Patarasuk and Yuan, J. Parallel Distrib. Comput. 69 (2009) 117, theorem 1.
_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}

# torch 2.13 renamed these functions and warns about the old names
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def sent_bytes(collective: str, payload_bytes: int, size: int) -> float:
    """Bytes that each of `size` ranks sends in a bandwidth-optimal all_reduce, all_gather or reduce_scatter.

    payload_bytes: size of the whole tensor: the output of all_gather, the input of the other two.
    A backend can choose another algorithm for small tensors. The count assumes a bandwidth-optimal one.
    """
    return _PASSES[collective] * payload_bytes * (size - 1) / size


@dataclass
class Tally:
    """Counts of one collective on one rank. `sent_bytes` is computed by the function of the same name."""

    calls: int = 0
    payload_bytes: int = 0
    sent_bytes: float = 0.0


@dataclass(eq=False)
class CommunicationCounts:
    """Tallies by collective (all_reduce, all_gather, reduce_scatter). A collective never called has zeros."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    def __getitem__(self, collective: str) -> Tally:
        return self.tallies.get(collective, Tally())

    @property
    def calls(self) -> int:
        return sum(tally.calls for tally in self.tallies.values())

    @property
    def sent_bytes(self) -> float:
        return sum(tally.sent_bytes for tally in self.tallies.values())

    def record(self, collective: str, payload_bytes: int, size: int) -> None:
        tally = self.tallies.setdefault(collective, Tally())
        tally.calls += 1
        tally.payload_bytes += payload_bytes
        tally.sent_bytes += sent_bytes(collective, payload_bytes, size)


# A plain list, not a context variable: on a GPU the backward pass communicates from a thread of autograd.
_counting: list[CommunicationCounts] = []


@contextmanager
def count_communication() -> Iterator[CommunicationCounts]:
    """Count the collectives of this process inside the block, forward and backward. Blocks can be nested."""
    counts = CommunicationCounts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


@dataclass(frozen=True, eq=False)
class Communicator:
    """A group of processes and the rank of this process in it.

    rank: rank within the group, 0 .. size - 1.
    ranks: the global ranks of the group, in order.
    process_group: the group of torch.distributed. With None the object only describes a layout: collectives on
    meta tensors are counted and return the right shape, and collectives on real tensors raise RuntimeError.
    A group of size 1 never communicates.
    """

    rank: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)
    process_group: dist.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Communicator:
        return self  # a copied layer communicates with the same processes; a process group cannot be copied

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """Return the sum (or the maximum, with op="max") of `x` over the group as a new tensor."""
        if self.size == 1:
            return x
        result = x.clone(memory_format=torch.contiguous_format)
        if self._begin("all_reduce", result):
            dist.all_reduce(result, _REDUCTIONS[op], group=self.process_group)
        return result

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """Concatenate the tensors of all ranks, which have equal shapes, along `dim` in rank order."""
        if self.size == 1:
            return x
        dim = dim % x.ndim
        parts = x.new_empty((self.size, *x.shape))
        if self._begin("all_gather", parts):
            _all_gather(parts.flatten(0, 1), x.contiguous(), group=self.process_group)
        return parts.movedim(0, dim).flatten(dim, dim + 1)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """Return this rank's slice along `dim` of the sum over the group.

        Raises ValueError if the dimension is not a multiple of the group size.
        """
        if self.size == 1:
            return x
        dim = dim % x.ndim
        slice_length(x.shape[dim], self.size)
        parts = x.unflatten(dim, (self.size, -1)).movedim(dim, 0).contiguous()
        result = torch.empty_like(parts[0])
        if self._begin("reduce_scatter", parts):
            _reduce_scatter(result, parts.flatten(0, 1), group=self.process_group)
        return result

    def own_slice(self, x: Tensor, dim: int) -> Tensor:
        """Return a copy of this rank's slice of `x` along `dim`, without communication."""
        if self.size == 1:
            return x
        length = slice_length(x.shape[dim], self.size)
        return x.narrow(dim, self.rank * length, length).clone()

    def _begin(self, collective: str, whole: Tensor) -> bool:
        """Count one collective on the tensor `whole`. Returns False on the meta device, which has nothing to send."""
        for counts in _counting:
            counts.record(collective, whole.nbytes, self.size)
        if whole.is_meta:
            return False
        if self.process_group is None:
            raise RuntimeError(
                f"{collective} on a real tensor: this group of {self.size} only describes a layout and has no processes"
            )
        return True


SINGLE = Communicator()


def slice_length(length: int, size: int) -> int:
    """Return length / size. Raises ValueError if it is not an integer."""
    if length % size:
        raise ValueError(f"a dimension of {length} cannot be split into {size} equal slices")
    return length // size
