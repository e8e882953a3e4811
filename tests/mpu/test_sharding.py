"""`shard` and `unshard` are inverse, and attributes survive when torch replaces parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from megatron.errors import ConfigError
from megatron.mpu import (
    ColumnParallelLinear,
    Communicator,
    RowParallelLinear,
    Shard,
    global_shape,
    local_shape,
    named_shards,
    shard,
    shard_of,
    unshard,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Shard, int]:
    size, blocks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    shape[dim] *= size * blocks
    return torch.arange(float(torch.Size(shape).numel())).view(shape), Shard(dim, blocks), size


@given(cases())
def test_unshard_is_the_inverse_of_shard(case: tuple[torch.Tensor, Shard, int]) -> None:
    full, spec, size = case
    parts = [shard(full, spec, rank, size) for rank in range(size)]
    assert {tuple(part.shape) for part in parts} == {local_shape(full.shape, spec, size)}
    assert global_shape(parts[0].shape, spec, size) == tuple(full.shape)
    assert torch.equal(unshard(parts, spec), full)


@given(cases())
def test_each_part_holds_a_share_of_every_block(case: tuple[torch.Tensor, Shard, int]) -> None:
    full, spec, size = case
    for rank in range(size):
        halves = [block.chunk(size, spec.dim)[rank] for block in full.chunk(spec.blocks, spec.dim)]
        assert torch.equal(shard(full, spec, rank, size), torch.cat(halves, spec.dim))


def test_a_dimension_that_cannot_be_split_raises() -> None:
    with pytest.raises(ConfigError, match=r"dimension 0 of a parameter of shape \(6, 2\) must be a multiple of 8"):
        shard(torch.zeros(6, 2), Shard(0, blocks=2), 0, 4)
    with pytest.raises(ConfigError, match="multiple of 4"):
        RowParallelLinear(6, 8, group=Communicator(0, 4))


def test_marks_survive_new_parameters() -> None:
    """`to_empty` and deepcopy create new Parameters, which do not have the attributes of the old ones."""
    with torch.device("meta"):
        model: Any = nn.Sequential(ColumnParallelLinear(4, 8, group=Communicator(0, 2), blocks=2), nn.LayerNorm(4))
    expected = {"0.weight": Shard(0, 2), "0.bias": Shard(0, 2)}
    assert tuple(model[0].weight.shape) == (4, 4) and named_shards(model) == expected
    before = model[0].weight
    model.to_empty(device="cpu")
    assert model[0].weight is not before
    for changed in (model, copy.deepcopy(model), model.to(torch.bfloat16), pickle.loads(pickle.dumps(model))):
        assert named_shards(changed) == expected
        assert changed[0].weight.model_parallel and not hasattr(changed[1].weight, "model_parallel")
        assert shard_of(changed[1].weight) is None
