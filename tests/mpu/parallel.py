"""Helpers that run inside the processes: one group of all, and comparison with the unsharded tensor."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.mpu import Communicator, ProcessGroups, Shard, unshard
from megatron.mpu.topology import Grid


def tensor_group() -> Communicator:
    """All processes as one tensor-parallel group."""
    return ProcessGroups.create(Grid(tensor=dist.get_world_size())).tensor


def _everyones(x: Tensor) -> list[Tensor]:
    """The tensors of all ranks in rank order; `x` alone where there are no processes."""
    if not dist.is_initialized():
        return [x.detach()]
    parts: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(parts, x.detach().clone())
    return parts


def gathered(local: Tensor, spec: Shard) -> Tensor:
    """The full tensor from the ranks' parts, without the code under test but `unshard`."""
    return unshard(_everyones(local), spec)


def assert_near(actual: Tensor | None, expected: Tensor | None, tolerance: float = 1e-6) -> None:
    """Greatest difference relative to the greatest entry."""
    assert actual is not None and expected is not None and actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30)


def assert_replicated(x: Tensor) -> None:
    """Equal on all ranks, bit for bit."""
    assert all(torch.equal(part, x) for part in _everyones(x))
