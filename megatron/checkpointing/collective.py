"""Exchange of errors between all processes: the failure of one rank raises on all ranks and hangs none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megatron.errors import CheckpointError, UserError, first_line

T = TypeVar("T")


def rank() -> int:
    """Global rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Return the `value` of every rank, in rank order, on every rank. Collective."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its (picklable) result on every rank.

    Collective. If `action` raises, every rank raises a UserError of the same class, or else CheckpointError.
    """
    result: Any = None
    error: Exception | None = None
    if rank() == 0:
        try:
            result = action()
        except Exception as caught:
            error = caught
    kind = type(error) if isinstance(error, UserError) else CheckpointError
    outcome: tuple[T, str | None, type[UserError]] = gather((result, describe(error) if error else None, kind))[0]
    if outcome[1] is not None:
        raise outcome[2](outcome[1]) from error
    return outcome[0]


def on_all_ranks(action: Callable[[], T]) -> T:
    """Run `action` on each rank and return the rank's result. Collective: if one rank raises, all ranks raise."""
    results: list[T] = []
    error: Exception | None = None
    try:
        results.append(action())
    except Exception as caught:
        error = caught
    problems = sorted({p for p in gather(describe(error) if error else None) if p is not None})
    if problems:
        raise CheckpointError("; ".join(problems)) from error
    return results[0]


def describe(error: BaseException) -> str:
    """Text of an error for a message: a UserError's text, an OSError's reason and file, otherwise the first line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return first_line(error)
