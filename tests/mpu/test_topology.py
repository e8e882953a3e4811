"""Ranks, groups and the mpu protocol agree with DeepSpeed's topology and grid."""

from __future__ import annotations

import os
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron import mpu
from megatron.errors import ConfigError
from megatron.mpu import Grid, ProcessGroups
from megatron.mpu.topology import Axis
from tests.mpu.distributed import run

sizes = st.integers(1, 5)
grids = st.builds(Grid, sizes, sizes, sizes)


@given(grids)
def test_ranks_and_coordinates_are_inverse(grid: Grid) -> None:
    assert [grid.rank(*grid.coordinate(rank)) for rank in range(grid.world_size)] == list(range(grid.world_size))
    for outside in (-1, grid.world_size):
        with pytest.raises(IndexError):
            grid.coordinate(outside)
    with pytest.raises(IndexError):
        grid.rank(tensor=grid.tensor)


@given(grids, st.lists(st.sampled_from(["pipe", "data", "tensor"]), unique=True))
def test_groups_partition_the_world(grid: Grid, axes: list[Any]) -> None:
    groups = grid.groups(*axes)
    assert sorted(rank for group in groups for rank in group) == list(range(grid.world_size))
    for group in groups:
        assert list(group) == sorted(group)
        for rank in group:
            assert grid.group_of(rank, *axes) == group


@settings(deadline=None, max_examples=30)
@given(grids)
def test_rank_order_matches_deepspeed(grid: Grid) -> None:
    with mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}):
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    theirs = PipeModelDataParallelTopology(num_pp=grid.pipe, num_mp=grid.tensor, num_dp=grid.data)
    for rank in range(grid.world_size):
        place = theirs.get_coord(rank)
        assert grid.coordinate(rank) == (place.pipe, place.data, place.model)
    axes: tuple[tuple[Axis, str], ...] = (("tensor", "model"), ("pipe", "pipe"), ("data", "data"))
    for ours, name in axes:
        assert [list(group) for group in grid.groups(ours)] == theirs.get_axis_comm_lists(name)
    assert [list(g) for g in grid.groups("pipe", "tensor")] == [
        sorted(theirs.get_axis_list("data", i)) for i in range(grid.data)
    ]


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 8))
def test_the_data_parallel_size_is_the_quotient(world_size: int, tensor: int, pipe: int) -> None:
    if world_size % (tensor * max(pipe, 1)):
        with pytest.raises(ConfigError, match=f"model_parallel_size {tensor}.*which is {world_size}"):
            Grid.for_world(world_size, tensor, pipe)
    else:
        assert Grid.for_world(world_size, tensor, pipe).world_size == world_size


@pytest.mark.parametrize("bad", [0, -1])
def test_sizes_below_one_raise(bad: int) -> None:
    with pytest.raises(ConfigError):
        Grid(tensor=bad)
    with pytest.raises(ConfigError):
        Grid.for_world(4, tensor=bad)


@settings(max_examples=20)
@given(grids)
def test_a_described_rank_is_at_its_position_in_every_group(grid: Grid) -> None:
    """No process is started: 1,024 ranks can be described one by one."""
    for rank in range(grid.world_size):
        groups = ProcessGroups.described(grid, rank)
        assert groups.model.size == grid.tensor * grid.pipe
        for communicator in (groups.tensor, groups.pipe, groups.data, groups.model):
            assert communicator.ranks[communicator.rank] == rank
    with pytest.raises(RuntimeError, match="no processes"):
        ProcessGroups.described(Grid(tensor=2), 0).tensor.all_reduce(torch.ones(1))


# --- in four processes ---

PROTOCOL = [
    f"get_{name}_{what}"
    for name in (
        "model_parallel",
        "slice_parallel",
        "tensor_model_parallel",
        "pipe_parallel",
        "data_parallel",
    )
    for what in ("rank", "world_size", "group")
    if (name, what) != ("tensor_model_parallel", "group")  # DeepSpeed's grid does not define it
] + [
    "get_pipeline_model_parallel_rank",
    "get_pipeline_model_parallel_world_size",
    "get_data_parallel_group_ranks",
]
LAYOUTS = [(t, p) for t, p in product((1, 2, 4), (1, 2, 4)) if t * p <= 4]


def _as_data(value: Any) -> Any:
    return dist.get_process_group_ranks(value) if isinstance(value, dist.ProcessGroup) else value


def _check_protocol() -> None:
    from deepspeed import init_distributed
    from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology

    init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    for tensor, pipe in LAYOUTS:
        groups = mpu.initialize_model_parallel(tensor, pipe)
        grid = groups.grid
        with mock.patch("builtins.print"):
            theirs = PipelineParallelGrid(PipeModelDataParallelTopology(grid.pipe, grid.tensor, grid.data))
        for name in PROTOCOL:
            assert _as_data(getattr(groups, name)()) == _as_data(getattr(theirs, name)()), (
                tensor,
                pipe,
                name,
            )
        assert mpu.get_topology() == grid and mpu.model_parallel_is_initialized()
        assert mpu.get_model_parallel_world_size() == tensor
        assert mpu.get_model_parallel_rank() == theirs.get_slice_parallel_rank()
        assert _as_data(mpu.get_model_parallel_group()) == _as_data(theirs.get_slice_parallel_group())
        assert mpu.get_model_parallel_src_rank() == _as_data(mpu.get_model_parallel_group())[0]
        assert mpu.get_data_parallel_src_rank() == theirs.get_data_parallel_group_ranks()[0]
        assert _as_data(mpu.get_data_parallel_group()) == _as_data(theirs.get_data_parallel_group())
        assert _as_data(mpu.get_pipe_parallel_group()) == _as_data(theirs.get_pipe_parallel_group())
        with pytest.raises(RuntimeError, match="already"):
            mpu.initialize_model_parallel(tensor, pipe)
        total = groups.model.all_reduce(torch.tensor([float(dist.get_rank())]))  # the groups connect the processes
        assert total.item() == sum(groups.model.ranks)
        mpu.destroy_model_parallel()
    with pytest.raises(RuntimeError, match="not initialised"):
        mpu.get_model_parallel_rank()
    with pytest.raises(ConfigError, match="model_parallel_size 3"):
        mpu.initialize_model_parallel(3)
    with pytest.raises(ConfigError, match="needs 2 processes"):
        ProcessGroups.create(Grid(tensor=2))


@pytest.mark.xdist_group("multiprocess")
def test_the_protocol_matches_deepspeed() -> None:
    run(4, _check_protocol)
