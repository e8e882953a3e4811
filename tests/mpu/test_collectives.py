"""Each collective and its adjoint against their mathematical definition, on every dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron.mpu import (
    SINGLE,
    Communicator,
    Grid,
    ProcessGroups,
    copy_to_region,
    count_communication,
    gather_from_sequence,
    reduce_from_region,
    reduce_scatter_to_sequence,
)
from tests.mpu.distributed import run
from tests.mpu.parallel import tensor_group

EVERY: list[Callable[..., Tensor]] = [
    copy_to_region,
    reduce_from_region,
    gather_from_sequence,
    reduce_scatter_to_sequence,
]


def _of(rank: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """The tensor of rank `rank`, which every rank can compute: small integers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randint(-8, 9, shape, generator=generator).float()


def _check(
    group: Communicator, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], name: str, dim: int
) -> None:
    xs = [_of(rank, shape, seed=1) for rank in range(group.size)]
    x = xs[group.rank].clone().requires_grad_()
    y = function(x)
    grads = [_of(rank, tuple(y.shape), seed=2) for rank in range(group.size)]
    y.backward(grads[group.rank])
    total: dict[str, Callable[[list[Tensor]], Tensor]] = {
        "own": lambda parts: parts[group.rank],
        "sum": lambda parts: torch.stack(parts).sum(0),
        "cat": lambda parts: torch.cat(parts, dim),
        "slice of sum": lambda parts: torch.stack(parts).sum(0).chunk(group.size, dim)[group.rank],
    }
    forward, backward = {
        "copy_to_region": ("own", "sum"),
        "reduce_from_region": ("sum", "own"),
        "gather_from_sequence": ("cat", "slice of sum"),
        "reduce_scatter_to_sequence": ("slice of sum", "cat"),
    }[name]
    assert torch.equal(y, total[forward](xs)), (name, dim)
    assert torch.equal(x.detach(), xs[group.rank]), "the argument was changed"
    assert x.grad is not None and torch.equal(x.grad, total[backward](grads)), (name, dim)


def _check_all() -> None:
    group = tensor_group()
    shape = (4, 8, 12)
    for function in (copy_to_region, reduce_from_region):
        _check(group, partial(function, group=group), shape, function.__name__, 0)
    for function in EVERY[2:]:
        for dim in (0, 1, 2, -1, -2):
            _check(group, partial(function, group=group, dim=dim), shape, function.__name__, dim)
    # tensors that are views of others: strides must not matter
    _check(
        group,
        lambda x: gather_from_sequence(x.transpose(0, 1), group, 0).transpose(0, 1),
        shape,
        "gather_from_sequence",
        1,
    )
    largest = group.all_reduce(torch.tensor([float(group.rank)]), "max")
    assert largest.item() == group.size - 1
    with pytest.raises(ValueError, match="dimension of 13 cannot be split"):
        group.reduce_scatter(torch.ones(13), 0)
    with pytest.raises(ValueError, match="dimension of 13 cannot be split"):
        reduce_scatter_to_sequence(torch.ones(13, 2), group)
    _check_counting(group)
    if group.size == 4:
        _check_two_groups()


def _check_counting(group: Communicator) -> None:
    with count_communication() as outer:
        group.all_reduce(torch.ones(8))
        with count_communication() as inner:
            group.all_gather(torch.ones(2, dtype=torch.float64), 0)
    group.all_reduce(torch.ones(8))  # outside both blocks: not counted
    assert (outer.calls, inner.calls) == (2, 1)
    assert inner["all_gather"].payload_bytes == 16 * group.size
    assert inner["all_reduce"].calls == 0
    assert outer.sent_bytes == 2 * 32 * (group.size - 1) / group.size + 16 * (group.size - 1)


def _check_two_groups() -> None:
    """Data and tensor groups of one world do not mix."""
    groups = ProcessGroups.create(Grid(tensor=2, data=2))
    rank = torch.tensor([float(dist.get_rank())])
    assert groups.tensor.all_gather(rank, 0).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]][dist.get_rank()]
    assert groups.data.all_gather(rank, 0).tolist() == [[0, 2], [1, 3], [0, 2], [1, 3]][dist.get_rank()]


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("size", [2, 4])
def test_collectives_and_their_adjoints(size: int) -> None:
    run(size, _check_all)


@pytest.mark.parametrize("function", EVERY)
def test_in_a_group_of_one_every_function_returns_its_argument(function: Callable[..., Tensor]) -> None:
    x = torch.ones(3, 5, requires_grad=True)
    with count_communication() as counts:
        assert function(x, SINGLE) is x
    assert counts.calls == 0


def test_a_second_derivative_raises() -> None:
    """The communication of the adjoint is not differentiable: an error is better than a wrong number."""
    with torch.device("meta"):
        x = torch.ones(4, requires_grad=True)
    y = copy_to_region(x, Communicator(0, 2)).square().sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
