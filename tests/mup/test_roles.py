"""Declared roles and layouts (GQA, experts, Conv1D, transposed convolutions, routers), and inferred roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mup
from mup import MuAdam, MuReadout, MuSGD, Role, ShapeError
from mup.plan import planned


class Experts(nn.Module):
    """Experts with weights [E, in, out]; out grows faster than in."""

    def __init__(self, width: int, ffn: int, count: int = 3) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(count, width, ffn))
        self.down = nn.Parameter(torch.empty(count, ffn, width))
        mup.declare(self, "up", Role.HIDDEN, fan_in_dim=1, fan_out_dim=2)
        mup.declare(self, "down", "hidden", fan_in_dim=1, fan_out_dim=2)


class Stacked(nn.Module):
    """Experts stacked along the output, [E * out, in], as in grouped kernels."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * ffn, width))
        mup.declare(self, "weight", Role.HIDDEN, fan_in_dim=1, fan_out_dim=0)


class Conv1D(nn.Module):
    """The linear layer of GPT-2 in transformers, with a weight [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))


def fixed_kv(width: int, ffn: int) -> Any:
    layer = nn.Linear(width, 32)
    mup.declare(layer, "weight", Role.HIDDEN)
    return layer


# name: (make(width, ffn), parameter, role, r, s) at base (4, 8), target (16, 64)
CASES: dict[str, tuple[Callable[[int, int], nn.Module], str, Role, float, float]] = {
    "experts_up": (Experts, "up", Role.HIDDEN, 4, 8),
    "experts_down": (Experts, "down", Role.HIDDEN, 8, 4),
    "experts_whose_number_grows": (lambda w, f: Experts(w, f, count=w // 2), "down", Role.HIDDEN, 8, 4),
    "stacked": (Stacked, "weight", Role.HIDDEN, 4, 8),
    "conv1d_layout": (lambda w, f: Conv1D(f, w), "weight", Role.HIDDEN, 4, 8),
    "transposed_convolution": (lambda w, f: nn.ConvTranspose2d(w, f, 3), "weight", Role.HIDDEN, 4, 8),
    "convolution": (lambda w, f: nn.Conv2d(w, f, 3), "weight", Role.HIDDEN, 4, 8),
    "linear": (lambda w, f: nn.Linear(w, f), "weight", Role.HIDDEN, 4, 8),
    "linear_bias": (lambda w, f: nn.Linear(w, f), "bias", Role.VECTOR, 8, 8),
    "fixed_kv_heads": (fixed_kv, "weight", Role.HIDDEN, 4, 1),
    "router": (lambda w, f: MuReadout(w, 8, bias=False), "weight", Role.OUTPUT, 4, 1),
    "embedding": (lambda w, f: nn.Embedding(11, w), "weight", Role.INPUT, 4, 1),
    "input_layer": (lambda w, f: nn.Linear(7, f), "weight", Role.INPUT, 1, 8),
    "gain": (lambda w, f: nn.LayerNorm(w), "weight", Role.VECTOR, 4, 4),
    "position_table_whose_length_grows": (lambda w, f: nn.Embedding(f, w), "weight", Role.INPUT, 4, 8),
}


def in_mup(case: str) -> Any:
    make = CASES[case][0]
    return mup.set_base_shapes(make(16, 64), make(4, 8), delta=make(8, 24))


@pytest.mark.parametrize("case", CASES)
def test_role_and_multipliers(case: str) -> None:
    _, name, role, r, s = CASES[case]
    [p] = [p for _, p in planned(in_mup(case)) if p.name == name]
    assert (p.role, p.fan_in_mult, p.fan_out_mult) == (role, r, s)


@pytest.mark.parametrize("case", CASES)
def test_learning_rates_follow_role_and_fan_in(case: str) -> None:
    _, name, role, r, s = CASES[case]
    model = in_mup(case)
    [p] = [p for own, p in model.named_parameters() if own == name]
    lr = {id(q): g["lr"] for build in (MuAdam,) for g in build(model, lr=1.0).param_groups for q in g["params"]}
    assert lr[id(p)] == (1 / r if role is Role.HIDDEN else 1)
    lr = {id(q): g["lr"] for g in MuSGD(model, lr=1.0).param_groups for q in g["params"]}
    m = {Role.INPUT: s if case == "input_layer" else 4, Role.OUTPUT: r, Role.VECTOR: s}
    assert lr[id(p)] == pytest.approx(s / r if role is Role.HIDDEN else m[role])


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2] is Role.HIDDEN])
def test_init_follows_role_and_fan_in(case: str) -> None:
    _, name, _, r, _ = CASES[case]
    p: Any = dict(in_mup(case).named_parameters())[name]
    torch.manual_seed(0)
    mup.normal_(p, std=0.5)
    assert float(p.detach().std()) == pytest.approx(0.5 * r**-0.5, rel=0.15)
    torch.manual_seed(0)
    mup.kaiming_normal_(p, nonlinearity="linear")  # 1/sqrt(fan_in) at every width is the rule of hidden matrices
    shape = p.infshape
    batch = 3 if name in ("up", "down") and case != "experts_whose_number_grows" else 1
    batch = 8 if case == "experts_whose_number_grows" else batch
    taps = p.numel() // (batch * shape.fanin_fanout()[0].dim * shape.fanin_fanout()[1].dim)
    assert float(p.detach().std()) == pytest.approx((shape.fanin_fanout()[0].dim * taps) ** -0.5, rel=0.15)


def test_a_declaration_can_come_after_set_base_shapes() -> None:
    make = lambda w: nn.Linear(w, 8)  # noqa: E731
    layer = mup.set_base_shapes(make(16), make(4), delta=make(8), do_assert=False)
    assert MuAdam(layer, lr=1.0).param_groups[0]["lr"] == 1
    mup.declare(layer, role="hidden")
    assert MuAdam(layer, lr=1.0).param_groups[0]["lr"] == 0.25
    mup.assert_hidden_size_inf(layer)


def test_invalid_declarations_raise() -> None:
    with pytest.raises(AttributeError, match="no direct parameter 'kernel'"):
        mup.declare(nn.Linear(2, 2), "kernel")
    with pytest.raises(ValueError, match="middle"):
        mup.declare(nn.Linear(2, 2), role="middle")


def test_three_growing_dimensions_need_a_declaration() -> None:
    make = lambda w: Experts(w, w, count=w)  # noqa: E731
    models = [make(w) for w in (16, 4, 8)]
    for model in models:
        del model.__dict__["_mup_declared"]
    grown = mup.set_base_shapes(models[0], models[1], delta=models[2])
    with pytest.raises(ShapeError, match="more than 2 infinite dimensions"):
        MuAdam(grown, lr=1.0)


def test_main_set_by_hand_is_the_fan_in() -> None:
    make = lambda w: nn.Linear(w, 4 * w, bias=False)  # noqa: E731
    model: Any = mup.set_base_shapes(nn.Linear(16, 64, bias=False), make(4), delta=nn.Linear(8, 24, bias=False))
    model.weight.infshape.main = model.weight.infshape[0]
    [(_, p)] = planned(model)
    assert (p.role, p.fan_in_mult) == (Role.HIDDEN, 4)
    model.weight.infshape[0].dim = 128
    assert next(iter(planned(model)))[1].fan_in_mult == 8


def test_a_declared_output_is_rescaled_like_a_readout() -> None:
    def make(width: int) -> Any:
        layer = nn.Linear(width, 3)
        mup.declare(layer, role=Role.OUTPUT)
        return layer

    torch.manual_seed(0)
    raw = make(16)
    torch.manual_seed(0)
    layer: Any = mup.set_base_shapes(make(16), make(4), delta=make(8))
    torch.testing.assert_close(layer.weight.detach(), 2 * raw.weight.detach())
