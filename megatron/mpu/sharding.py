"""Shards of a full tensor over the tensor-parallel ranks: the specification, and pure functions that apply it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch import stack as torch_stack

from megatron.errors import ConfigError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A split along `dim`.

    With `blocks` > 1 the dimension consists of that many equal blocks, and each block is split over all ranks. A
    fused [up; gate] matrix has two blocks: a rank holds its part of up, then its part of gate.
    """

    dim: int = 0
    blocks: int = 1


def local_shape(shape: Sequence[int], spec: Shard, size: int) -> Shape:
    """Shape of one rank's part of a tensor of global shape `shape`. Raises ConfigError if it cannot be split."""
    pieces = spec.blocks * size
    if shape[spec.dim] % pieces:
        raise ConfigError(
            f"dimension {spec.dim} of a parameter of shape {tuple(shape)} must be a multiple of {pieces} to "
            f"be split over {size} tensor-parallel ranks" + (f" in {spec.blocks} blocks" if spec.blocks > 1 else "")
        )
    return _with_length(shape, spec.dim, shape[spec.dim] // size)


def global_shape(local: Sequence[int], spec: Shard, size: int) -> Shape:
    """Shape of the full tensor, given the shape `local` of each rank's part."""
    return _with_length(local, spec.dim, local[spec.dim] * size)


def _with_length(shape: Sequence[int], dim: int, length: int) -> Shape:
    result = list(shape)
    result[dim] = length
    return tuple(result)


def shard(full: Tensor, spec: Shard, rank: int, size: int) -> Tensor:
    """Return the part of `full` that tensor-parallel rank `rank` of `size` holds. It can share memory with `full`.

    Raises ConfigError if the dimension cannot be split. The inverse is `unshard`.
    """
    dim = spec.dim % full.ndim
    length = local_shape(full.shape, spec, size)[dim] // spec.blocks
    cut = full.unflatten(dim, (spec.blocks, size, length))
    part: Tensor = cut.select(dim + 1, rank).flatten(dim, dim + 1)
    return part


def unshard(parts: Sequence[Tensor], spec: Shard) -> Tensor:
    """Assemble the full tensor from the parts of all ranks, in rank order."""
    dim = spec.dim % parts[0].ndim
    length = parts[0].shape[dim] // spec.blocks
    cut = [part.unflatten(dim, (spec.blocks, length)) for part in parts]
    full: Tensor = torch_stack(cut, dim + 1).flatten(dim, dim + 2)
    return full


def shard_of(parameter: nn.Parameter) -> Shard | None:
    """The shard of a parameter, or None for a parameter that every tensor-parallel rank holds in full."""
    return getattr(parameter, "shard", None)


class ShardedModule(nn.Module):
    """A module with sharded parameters, listed by name in `shards`.

    Each sharded parameter also carries its `Shard` and the flag `model_parallel` as attributes. By that flag
    DeepSpeed recognises the parameters that its gradient norm must count on every rank. torch drops attributes
    when it creates a new Parameter (`to_empty`, deepcopy, unpickling), so the module sets them again from `shards`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shards: dict[str, Shard] = {}

    def add_sharded(self, name: str, parameter: nn.Parameter, spec: Shard) -> None:
        """Register a sharded parameter, given with its local shape."""
        self.register_parameter(name, parameter)
        self.shards[name] = spec
        self._mark()

    def _mark(self) -> None:
        for name, spec in self.shards.items():
            parameter = getattr(self, name)
            parameter.shard = spec
            parameter.model_parallel = True

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        apply: Callable[..., nn.Module] = super()._apply
        apply(fn, recurse)
        self._mark()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Callable[[dict[str, Any]], None] = super().__setstate__
        restore(state)
        self._mark()


def named_shards(model: nn.Module) -> dict[str, Shard]:
    """Shards by the names of `named_parameters` (a shared parameter appears under its first name)."""
    found = ((name, shard_of(parameter)) for name, parameter in model.named_parameters())
    return {name: spec for name, spec in found if spec is not None}
