"""Helpers that run inside the processes: one group of all ranks, and comparison with the unsharded tensor."""

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
    """The tensors of all ranks in rank order; only `x` without torch.distributed."""
    if not dist.is_initialized():
        return [x.detach()]
    parts: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(parts, x.detach().clone())
    return parts


def gathered(local: Tensor, spec: Shard) -> Tensor:
    """Assemble the full tensor from the ranks' parts. Of the code under test it uses only `unshard`."""
    return unshard(_everyones(local), spec)


def assert_near(actual: Tensor | None, expected: Tensor | None, tolerance: float = 1e-6) -> None:
    """Assert that the largest difference, relative to the largest entry, is within the tolerance."""
    assert actual is not None and expected is not None and actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30)


def assert_replicated(x: Tensor) -> None:
    """Assert that `x` is equal on all ranks, bit for bit."""
    assert all(torch.equal(part, x) for part in _everyones(x))
