"""The grid of pipeline, data and tensor parallelism, and the process groups along its axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal, NamedTuple

import torch.distributed as dist

from megatron.errors import ConfigError
from megatron.mpu.communicator import Communicator

Axis = Literal["pipe", "data", "tensor"]
Ranks = tuple[int, ...]


class Coordinate(NamedTuple):
    """Position of a process on each axis."""

    pipe: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Grid:
    """Sizes of the axes.

    Ranks are ordered by pipe, data, tensor, with tensor varying fastest, as in DeepSpeed's
    PipeModelDataParallelTopology. Tensor-parallel neighbours are therefore on one host.
    """

    tensor: int = 1
    pipe: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for axis in ("tensor", "pipe", "data"):
            if getattr(self, axis) < 1:
                raise ConfigError(f"the {axis} parallel size is {getattr(self, axis)}; expected at least 1")

    @classmethod
    def for_world(cls, world_size: int, tensor: int = 1, pipe: int = 1) -> Grid:
        """Return the grid of `world_size` processes.

        pipe: 0 counts as 1. Raises ConfigError if tensor x pipe does not divide `world_size`.
        """
        per_replica = tensor * max(pipe, 1)
        if per_replica < 1 or world_size % per_replica:
            raise ConfigError(
                f"model_parallel_size {tensor} x pipe_parallel_size {max(pipe, 1)} must divide the number of "
                f"processes, which is {world_size}"
            )
        return cls(tensor, max(pipe, 1), world_size // per_replica)

    @property
    def sizes(self) -> Coordinate:
        """Size of each axis."""
        return Coordinate(self.pipe, self.data, self.tensor)

    @property
    def world_size(self) -> int:
        return self.pipe * self.data * self.tensor

    def rank(self, pipe: int = 0, data: int = 0, tensor: int = 0) -> int:
        """Global rank at a coordinate. Raises IndexError outside the grid."""
        place = Coordinate(pipe, data, tensor)
        if not all(0 <= i < n for i, n in zip(place, self.sizes, strict=True)):
            raise IndexError(f"{place} is outside {self}")
        return (pipe * self.data + data) * self.tensor + tensor

    def coordinate(self, rank: int) -> Coordinate:
        """Coordinate of a global rank. Raises IndexError outside the grid."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside {self}")
        rest, tensor = divmod(rank, self.tensor)
        return Coordinate(*divmod(rest, self.data), tensor)

    def groups(self, *axes: Axis) -> list[Ranks]:
        """All groups of ranks that differ only on the given axes, each in rank order."""
        others = [range(n) if axis not in axes else (None,) for axis, n in self.sizes._asdict().items()]
        return [self._matching(*fixed) for fixed in product(*others)]

    def group_of(self, rank: int, *axes: Axis) -> Ranks:
        """The group of `groups(*axes)` that `rank` belongs to."""
        place = self.coordinate(rank)._asdict()
        return self._matching(*(None if axis in axes else i for axis, i in place.items()))

    def _matching(self, *fixed: int | None) -> Ranks:
        places = [range(n) if i is None else (i,) for i, n in zip(fixed, self.sizes, strict=True)]
        return tuple(self.rank(*place) for place in product(*places))


_Connect = Callable[[Ranks, Callable[[], list[Ranks]]], dist.ProcessGroup | None]


def _new_groups(own: Ranks, groups: Callable[[], list[Ranks]]) -> dist.ProcessGroup:
    # Every process creates every group. torch's local synchronisation names a group by the number of groups that a
    # process has, and hangs if that number differs between the members, as it does after DeepSpeed created some.
    made = {ranks: dist.new_group(list(ranks)) for ranks in groups()}
    group: dist.ProcessGroup = made[own]
    return group


@dataclass(frozen=True, eq=False)
class ProcessGroups:
    """The rank of one process and its groups: `tensor`, `pipe`, `data`, and `model` (all ranks of one replica).

    `deepspeed.initialize(mpu=...)` accepts this object. The `get_*` methods have the meaning of DeepSpeed's
    PipelineParallelGrid: `get_model_parallel_*` covers tensor and pipeline ranks, `get_slice_parallel_*` and
    `get_tensor_model_parallel_*` cover the tensor ranks. `get_sequence_parallel_*` refers to DeepSpeed-Ulysses,
    which is not used here (size 1): Megatron's sequence parallelism works inside the tensor-parallel group.
    """

    grid: Grid
    rank: int
    tensor: Communicator
    pipe: Communicator
    data: Communicator
    model: Communicator

    @classmethod
    def create(cls, grid: Grid) -> ProcessGroups:
        """Create the groups. Every process must call it.

        Raises ConfigError if the grid does not have as many ranks as there are processes.
        """
        if dist.get_world_size() != grid.world_size:
            raise ConfigError(
                f"the layout tensor {grid.tensor} x pipe {grid.pipe} x data {grid.data} needs "
                f"{grid.world_size} processes, but there are {dist.get_world_size()}"
            )
        return cls._build(grid, dist.get_rank(), _new_groups)

    @classmethod
    def described(cls, grid: Grid, rank: int) -> ProcessGroups:
        """Describe the groups of rank `rank` without processes, to build its part of a model on the meta device."""
        return cls._build(grid, rank, lambda own, groups: None)

    @classmethod
    def _build(cls, grid: Grid, rank: int, connect: _Connect) -> ProcessGroups:
        def communicator(*axes: Axis) -> Communicator:
            ranks = grid.group_of(rank, *axes)
            return Communicator(ranks.index(rank), len(ranks), ranks, connect(ranks, partial(grid.groups, *axes)))

        return cls(
            grid,
            rank,
            tensor=communicator("tensor"),
            pipe=communicator("pipe"),
            data=communicator("data"),
            model=communicator("pipe", "tensor"),
        )

    @property
    def coordinate(self) -> Coordinate:
        return self.grid.coordinate(self.rank)

    # The protocol of DeepSpeed's `mpu`: its engine, optimizers or checkpoints read every name below.

    def get_global_rank(self) -> int:
        return self.rank

    def get_model_parallel_rank(self) -> int:
        return self.model.rank

    def get_model_parallel_world_size(self) -> int:
        return self.model.size

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self.model.process_group

    def get_slice_parallel_rank(self) -> int:
        return self.tensor.rank

    def get_slice_parallel_world_size(self) -> int:
        return self.tensor.size

    def get_slice_parallel_group(self) -> dist.ProcessGroup | None:
        return self.tensor.process_group

    get_tensor_model_parallel_rank = get_slice_parallel_rank
    get_tensor_model_parallel_world_size = get_slice_parallel_world_size
    get_tensor_model_parallel_group = get_slice_parallel_group

    def get_tensor_model_parallel_src_rank(self) -> int:
        return self.tensor.ranks[0]

    def get_pipe_parallel_rank(self) -> int:
        return self.pipe.rank

    def get_pipe_parallel_world_size(self) -> int:
        return self.pipe.size

    def get_pipe_parallel_group(self) -> dist.ProcessGroup | None:
        return self.pipe.process_group

    get_pipeline_model_parallel_rank = get_pipe_parallel_rank
    get_pipeline_model_parallel_world_size = get_pipe_parallel_world_size
    get_pipeline_model_parallel_group = get_pipe_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self.data.rank

    def get_data_parallel_world_size(self) -> int:
        return self.data.size

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self.data.process_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return list(self.data.ranks)

    def get_sequence_parallel_rank(self) -> int:
        return 0

    def get_sequence_parallel_world_size(self) -> int:
        return 1

    get_sequence_data_parallel_rank = get_data_parallel_rank
    get_sequence_data_parallel_world_size = get_data_parallel_world_size
    get_sequence_data_parallel_group = get_data_parallel_group
