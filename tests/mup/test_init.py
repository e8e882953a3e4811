"""Initializers against torch.nn.init."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import init as torch_init

import mup
import mup.init as mup_init
from mup import InfDim, InfShape, Role

# name, keyword arguments that do not depend on the width
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("normal_", {"std": 0.3}),
    ("uniform_", {"a": -0.2, "b": 0.2}),
    ("trunc_normal_", {"std": 0.5, "a": -1.0, "b": 1.0}),
    ("xavier_uniform_", {"gain": 1.5}),
    ("xavier_normal_", {"gain": 0.5}),
    ("kaiming_uniform_", {"a": 5**0.5}),
    ("kaiming_uniform_", {"mode": "fan_out"}),
    ("kaiming_normal_", {"nonlinearity": "relu"}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "tanh"}),
]
IDS = [f"{name}{kwargs}" for name, kwargs in CALLS]


def parameter(base: tuple[int | None, ...], dims: tuple[int, ...], role: Role | None = None) -> Any:
    p: Any = nn.Parameter(torch.zeros(dims))
    p.infshape = InfShape(InfDim(b, d) for b, d in zip(base, dims, strict=True))
    if role is not None:
        p.infshape.declare(role)
    return p


def draw(module: Any, name: str, p: torch.Tensor, kwargs: dict[str, Any], generator: bool) -> torch.Tensor:
    torch.manual_seed(7)
    own = {"generator": torch.Generator().manual_seed(7)} if generator else {}
    return getattr(module, name)(p, **kwargs, **own).detach().clone()


@pytest.mark.parametrize(("name", "kwargs"), CALLS, ids=IDS)
@pytest.mark.parametrize("base", [(None, None), (16, 24), (16, None), (None, 24)])
@pytest.mark.parametrize("generator", [False, True])
def test_base_width_equals_torch_bit_for_bit(name: str, kwargs: dict[str, Any], base: Any, generator: bool) -> None:
    p = parameter(base, (16, 24))
    expected = draw(torch_init, name, torch.zeros(16, 24), kwargs, generator)
    assert torch.equal(draw(mup_init, name, p, kwargs, generator), expected)


@pytest.mark.parametrize(("name", "kwargs"), CALLS, ids=IDS)
@pytest.mark.parametrize(
    ("base", "dims", "role"),
    [
        ((16, 24), (64, 48), None),  # hidden
        ((16, 24), (8, 12), None),  # narrower than the base
        ((None, 24), (16, 96), None),  # output
        ((16, None), (64, 24), None),  # input
        ((None, 24), (16, 96), Role.HIDDEN),  # fixed KV heads
        ((16, 24, None), (64, 48, 3), None),  # convolution
    ],
)
def test_other_widths_have_the_formula_at_base_width_times_the_rule(
    name: str, kwargs: dict[str, Any], base: Any, dims: Any, role: Any
) -> None:
    p = parameter(base, dims, role)
    hidden = role is Role.HIDDEN or p.infshape.ninf() == 2
    at_base = torch.zeros([b or d for b, d in zip(base, dims, strict=True)])
    std = float(draw(torch_init, name, at_base, kwargs, False).std())
    r = dims[1] / base[1] if hidden else 1.0
    got = draw(mup_init, name, p, kwargs, False)
    assert float(got.std()) == pytest.approx(std * r**-0.5, rel=0.15)


@pytest.mark.parametrize("name", ["kaiming_normal_", "kaiming_uniform_"])
def test_a_factor_of_one_equals_torch_bit_for_bit_at_any_width(name: str) -> None:
    p = parameter((16, 24), (64, 72))  # torch's formula for fan_in mode is the rule of a hidden matrix
    assert torch.equal(draw(mup_init, name, p, {}, False), draw(torch_init, name, torch.zeros(64, 72), {}, False))
    p = parameter((16, None), (64, 24))
    assert torch.equal(
        draw(mup_init, "normal_", p, {}, False), draw(torch_init, "normal_", torch.zeros(64, 24), {}, False)
    )


@settings(max_examples=50, deadline=None)
@given(base=st.integers(1, 40), r=st.integers(1, 8), s=st.integers(1, 8))
def test_constant_std_is_multiplied_by_the_root_of_r(base: int, r: int, s: int) -> None:
    scales: list[float] = []
    p = parameter((base, base), (s * base, r * base))
    mup_init.constant_std_init_(p, lambda tensor, *, scale=1.0: scales.append(scale))
    assert scales == [r**-0.5]


def test_ones_eye_and_means() -> None:
    for p in (parameter((16,), (64,)), parameter((None,), (64,))):
        assert bool((mup.ones_(p) == 1).all())
        assert 0.4 < float(mup.uniform_(p).detach().mean()) < 0.6
        assert 2.5 < float(mup.trunc_normal_(p, mean=3.0, a=0.0, b=6.0).detach().mean()) < 3.5
    assert torch.equal(mup.eye_(parameter((None, 8), (3, 16))).detach(), torch.eye(3, 16))
    hidden = parameter((16, 16), (32, 32))
    for call in (
        mup.ones_,
        mup.eye_,
        mup.uniform_,
        lambda p: mup.normal_(p, mean=1.0),
        lambda p: mup.trunc_normal_(p, a=-1),
    ):
        with pytest.raises(mup.ShapeError, match="mean must be 0"):
            call(hidden)


def test_errors_and_empty_tensors() -> None:
    with pytest.raises(mup.ShapeError, match="set_base_shapes"):
        mup.kaiming_normal_(nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="fan-in"):
        mup.xavier_normal_(parameter((4,), (8,)))
    with pytest.raises(ValueError, match="mode"):
        mup.kaiming_normal_(parameter((4, 4), (8, 8)), mode="fan_sum")  # type: ignore[arg-type]
    empty = parameter((None, None), (0, 4))
    assert mup.kaiming_normal_(empty) is empty and mup.kaiming_uniform_(empty) is empty


def test_init_statistics_of_a_declared_expert() -> None:
    p = parameter((None, 16, 16), (2, 64, 64))
    p.infshape.declare(Role.HIDDEN, fan_in_dim=1, fan_out_dim=2)
    mup.xavier_normal_(p)
    assert float(p.detach().std()) == pytest.approx(math.sqrt(2 / (16 + 16)) / 2, rel=0.1)
