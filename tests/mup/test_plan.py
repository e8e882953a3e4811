"""Plans of parameters before they exist: multipliers, initial weights, parts of fused matrices, groups."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mup
from mup import Declaration, MuAdam, MuAdamW, MuSGD, Options, Part, Role, param_groups
from mup.groups import group_parameters, learning_rate_multipliers
from mup.init_methods import BaseSizes, InitMethods
from mup.plan import ModelScale, ParameterPlan, plan_parameter, planned, unscaled_fan_ins

H, L = 32, 3  # hidden size and layers of the base model
BASE = BaseSizes(hidden_size=H, num_layers=L)
SCALE = ModelScale(BASE, width_mult=4.0)
HIDDEN = Declaration(Role.HIDDEN)


def plan(
    shape: tuple[int, ...],
    base_shape: tuple[int, ...],
    declaration: Declaration = HIDDEN,
    model: ModelScale = SCALE,
    name: str = "w",
    base_declaration: Declaration | None = None,
    in_block: bool = False,
) -> ParameterPlan:
    base = declaration if base_declaration is None else base_declaration
    return plan_parameter(name, shape, declaration, base_shape, base, model, in_block=in_block)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- multipliers and initial weights ---------------------------------------------------------------------------


def test_multipliers_come_from_the_declared_layout() -> None:
    p = plan((96, 128), (48, 32))
    assert (p.fan_in_mult, p.fan_out_mult, p.width_mult) == (4, 2, 4)
    assert (p.shape, p.base_shape, p.role) == ((96, 128), (48, 32), Role.HIDDEN)
    p = plan((128, 96), (32, 48), Declaration(Role.HIDDEN, fan_in_dim=0))
    assert (p.fan_in_mult, p.fan_out_mult) == (4, 2)
    p = plan((50, 128), (50, 32), Declaration(Role.INPUT, fan_in_dim=0))
    assert (p.fan_in_mult, p.fan_out_mult, p.width_mult, p.init_std) == (1, 4, 4, 0.02)
    p = plan((256,), (32,), Declaration(Role.VECTOR, "zeros"))
    assert (p.fan_in_mult, p.fan_out_mult, p.width_mult) == (8, 8, 8)
    with pytest.raises(TypeError, match="w has no declared role"):
        plan((4, 4), (4, 4), Declaration(None))
    with pytest.raises(mup.ShapeError, match="dimensions"):
        plan((4, 4, 4), (4, 4))


FORMULAS = {  # std of a matrix from 40 to 24 in the base model: formulas of the papers, with h = 32 and L = 3
    "normal": 0.05,
    "scaled_normal": 0.05 / math.sqrt(6),
    "single_residual_scaled_normal": 0.05 / math.sqrt(3),
    "small_init": math.sqrt(2 / (5 * 32)),
    "wang_init": 2 / (3 * math.sqrt(32)),
    "xavier_uniform": math.sqrt(2 / (40 + 24)),
    "xavier_normal": math.sqrt(2 / (40 + 24)),
    "orthogonal": 1 / math.sqrt(40),
    "scaled_orthogonal": 1 / math.sqrt(40) / math.sqrt(6),
}


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("kind", ["matrix", "output_matrix"])
def test_init_methods_at_the_base_times_the_rule_once(method: str, kind: Any) -> None:
    init = InitMethods(**{kind: method}, std=0.05)
    declaration = Declaration(Role.HIDDEN, kind)
    at_base = plan((24, 40), (24, 40), declaration, ModelScale(BASE, init=init))
    assert (at_base.init_method, at_base.init_std) == (method, pytest.approx(FORMULAS[method]))
    assert at_base.scaling == mup.Scaling()
    wide = plan((240, 360), (24, 40), declaration, ModelScale(BASE, width_mult=9.0, init=init, init_scale=0.7))
    assert wide.init_std == pytest.approx(0.7 * FORMULAS[method] / 3)  # r = 9
    weight = wide.draw(generator())
    assert weight.shape == (240, 360) and weight.dtype == torch.float32
    assert float(weight.std()) == pytest.approx(wide.init_std, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * wide.init_std
    if "orthogonal" in method:
        rows = weight @ weight.T
        torch.testing.assert_close(rows, torch.eye(240) * rows[0, 0], atol=1e-5, rtol=0)
    bound = float(weight.abs().max()) / wide.init_std  # a uniform distribution ends at sqrt(3)
    assert bound == pytest.approx(math.sqrt(3), rel=1e-3) if method == "xavier_uniform" else bound > 2.5


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="init-method: expected one of normal, .* got 'he'"):
        plan((4, 4), (4, 4), model=ModelScale(BASE, init=InitMethods("he")))


def test_constant_parameters_are_not_drawn() -> None:
    ones = plan((6,), (6,), Declaration(Role.VECTOR, "ones"))
    assert torch.equal(ones.draw(generator()), torch.ones(6)) and ones.init_std == 0
    assert torch.equal(plan((6,), (6,), Declaration(Role.VECTOR, "zeros")).draw(generator()), torch.zeros(6))
    model = replace(SCALE, options=Options(readout_zero_init=True))
    assert torch.equal(plan((3, 8), (3, 2), Declaration(Role.OUTPUT), model).draw(generator()), torch.zeros(3, 8))


def test_draws_depend_only_on_the_generator() -> None:
    p = plan((8, 8), (8, 8))
    assert torch.equal(p.draw(generator(1)), p.draw(generator(1)))
    assert torch.equal(p.draw(generator(1)), torch.empty(8, 8).normal_(0.0, 0.02, generator=generator(1)))
    assert not torch.equal(p.draw(generator(1)), p.draw(generator(2)))


def test_depth_affects_only_blocks() -> None:
    """CompleteP, Table 1, alpha 1: block lr x 1, eps x 1/mL. depth-muP, alpha 1/2: block lr and eps x mL^-1/2."""
    for alpha, lr, eps in ((1.0, 1.0, 1 / 9), (0.5, 1 / 3, 1 / 3)):
        model = ModelScale(BASE, depth_mult=9.0, options=Options(depth_alpha=alpha))
        inside, outside = (plan((8, 8), (8, 8), model=model, in_block=flag).scaling for flag in (True, False))
        assert (inside.lr, inside.eps) == pytest.approx((lr, eps))
        assert (outside.lr, outside.eps) == (1, 1)


def test_matrices_with_the_fan_in_of_the_base_are_listed() -> None:
    grown, stays = plan((32, 128), (32, 32), name="grown"), plan((128, 32), (32, 32), name="stays")
    gain = plan((32,), (32,), Declaration(Role.VECTOR, "ones"), name="gain")
    table = plan((9, 64), (9, 32), Declaration(Role.INPUT, fan_in_dim=0), name="table")
    assert unscaled_fan_ins([grown, stays, gain, table]) == ["stays"]
    assert unscaled_fan_ins([plan((32, 32), (32, 32)), gain]) == []


# ---- parts of fused matrices -----------------------------------------------------------------------------------


def fused(queries: int, head_dim: int) -> Declaration:
    """Declare a fused matrix with `queries` query heads, a key and a value head, in this order, per key-value head."""
    period = (queries + 2) * head_dim
    query = Part("query", Role.HIDDEN, 0, queries * head_dim, period)
    return Declaration(Role.HIDDEN, parts=(query, Part("value", Role.VALUE, period - head_dim, period, period)))


def qkv(
    width: int, kv_heads: int, base_width: int, base_kv_heads: int, head_dim: int = 8, **model: Any
) -> ParameterPlan:
    """Plan a fused projection with width / head_dim query heads."""
    queries, base_queries = width // head_dim // kv_heads, base_width // head_dim // base_kv_heads
    rows, base_rows = width + 2 * kv_heads * head_dim, base_width + 2 * base_kv_heads * head_dim
    scale = ModelScale(BASE, width_mult=width / base_width, init=InitMethods(std=1.0), **model)
    declarations = fused(queries, head_dim), fused(base_queries, head_dim)
    return plan((rows, width), (base_rows, base_width), declarations[0], scale, base_declaration=declarations[1])


def stds(p: ParameterPlan, kv_heads: int, head_dim: int = 8) -> tuple[float, float, float]:
    """Stds of queries, keys and values, counted from the end of the rows of each key-value head."""
    rows = p.draw(generator()).view(kv_heads, -1, p.shape[1])
    parts = rows[:, : -2 * head_dim], rows[:, -2 * head_dim : -head_dim], rows[:, -head_dim:]
    q, k, v = (float(part.square().mean().sqrt()) for part in parts)
    return q, k, v


@pytest.mark.parametrize(
    ("width", "kv_heads", "base_kv_heads", "value_std"),
    [
        (256, 2, 2, 1 / 4),  # r = 4, s = 1: sigma / r, as for a map to a finite dimension
        (256, 4, 2, math.sqrt(2) / 4),  # r = 4, s = 2: sqrt(s) / r, which gives the norm sqrt(fan_out / fan_in)
        (256, 8, 2, 1 / 2),  # s = r: hidden
        (256, 8, 1, 1 / 2),  # s = 8 > r: also hidden
        (64, 2, 2, 1.0),  # the base
    ],
)
def test_values_of_slowly_growing_heads_start_smaller(
    width: int, kv_heads: int, base_kv_heads: int, value_std: float
) -> None:
    q, k, v = stds(qkv(width, kv_heads, 64, base_kv_heads), kv_heads)
    hidden = (width / 64) ** -0.5
    assert (q, k, v) == pytest.approx((hidden, hidden, value_std), rel=0.05)


def test_sp_has_no_parts_and_zero_starts_are_zero() -> None:
    assert qkv(256, 2, 64, 2, options=Options(mup=False)).parts == ()
    p = qkv(256, 2, 64, 2, zero_queries=True, zero_values=True)
    q, k, v = stds(p, 2)
    assert (q, v) == (0, 0) and k == pytest.approx(1 / 2, rel=0.05)
    assert not torch.signbit(p.draw(generator())[p.draw(generator()) == 0]).any()  # no negative zeros
    assert stds(qkv(64, 2, 64, 2, zero_values=True), 2)[2] == 0  # also at the base


def test_parts_are_rows_of_every_period() -> None:
    part = Part("value", Role.VALUE, 3, 5, 6)
    assert part.count(24) == 8
    weight = torch.arange(12.0)[:, None].expand(12, 2).clone()
    assert part.of(weight)[..., 0].tolist() == [[3, 4], [9, 10]]
    part.of(weight).zero_()
    assert weight[:, 1].tolist() == [0, 1, 2, 0, 0, 5, 6, 7, 8, 0, 0, 11]


# ---- the role of values, on layers -----------------------------------------------------------------------------


def test_a_layer_of_values_without_a_plan() -> None:
    """With 8 value rows at every width: init sigma / r, lr eta / r (Adam), eta s / r = eta / r (SGD)."""

    def make(width: int) -> nn.Linear:
        layer = nn.Linear(width, 8)
        mup.declare(layer, "weight", "value")
        return layer

    torch.manual_seed(0)
    raw = make(64)
    torch.manual_seed(0)
    layer = make(64)
    mup.set_base_shapes(layer, make(4), delta=make(8))  # r = 16
    torch.testing.assert_close(layer.weight.detach(), raw.weight.detach() / 4)  # torch's init already has r^-1/2
    for build in (MuAdam, MuSGD):
        groups = build(layer, lr=1.0, weight_decay=0.1).param_groups
        [group] = [g for g in groups if any(p is layer.weight for p in g["params"])]
        assert (group["lr"], group["lr_mult"], group["weight_decay"]) == pytest.approx((1 / 16, 1 / 16, 1.6))
        assert group["name"].startswith("value")
    drawn = mup.normal_(layer.weight, std=0.5)
    assert float(drawn.detach().std()) == pytest.approx(0.5 / 16, rel=0.1)
    [group] = [g for g in param_groups(layer, lr=1.0, eps=1e-8) if g["role"] == "value"]
    assert (group["name"], group["lr"], group["eps"], group["width_mult"]) == ("value.r16", 1 / 16, 1e-8 / 16, 16)


@pytest.mark.parametrize(("build", "lr"), [(MuAdamW, 0.01), (MuSGD, 0.1)])
def test_values_train_like_a_readout(build: Any, lr: float) -> None:
    """Tensor Programs V, Table 8: a map to a finite dimension, in the forms without and with a forward multiplier."""

    def make(width: int, as_readout: bool) -> nn.Module:
        layer = mup.MuReadout(width, 8) if as_readout else nn.Linear(width, 8)
        if not as_readout:
            mup.declare(layer, "weight", Role.VALUE)
        return nn.Sequential(nn.Linear(3, width), layer)

    outputs = []
    x = torch.randn(5, 3, generator=generator())
    for as_readout in (False, True):
        torch.manual_seed(0)
        model = make(64, as_readout)
        mup.set_base_shapes(model, make(4, as_readout), delta=make(8, as_readout))
        optimizer = build(model, lr=lr, weight_decay=0.1, **({"eps": 1e-30} if build is MuAdamW else {}))
        before = model(x).detach()
        for _ in range(4):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()
        outputs.append(model(x).detach())
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert float((outputs[0] - before).abs().max()) > 0.02  # training changed the output


# ---- groups ----------------------------------------------------------------------------------------------------


def grouped(*plans: ParameterPlan, whole: tuple[ParameterPlan, ...] = (), **kwargs: Any) -> list[dict[str, Any]]:
    pairs = [(nn.Parameter(torch.zeros(p.shape)), p) for p in plans]
    return group_parameters(pairs, whole or plans, **{"lr": 1.0, "weight_decay": 0.1, "eps": 1e-8, **kwargs})


def test_groups_of_one_label_are_numbered_over_the_whole_model() -> None:
    one = plan((32, 32), (32, 32), name="a", in_block=True)
    other = plan((64, 32), (32, 32), name="b", in_block=True, model=ModelScale(BASE, width_mult=2.0))  # eps 1/2
    third = plan((64, 32), (32, 32), name="c", in_block=True, model=ModelScale(BASE, width_mult=3.0))  # eps 1/3
    again = plan((16, 32), (16, 32), name="d", in_block=True)
    groups = grouped(one, other, third, again)
    assert [(g["name"], g["parameter_names"]) for g in groups] == [
        ("block.hidden", ["a", "d"]),
        ("block.hidden#1", ["b"]),
        ("block.hidden#2", ["c"]),
    ]
    assert [len(g["params"]) for g in groups] == [2, 1, 1]
    assert [g["eps"] for g in groups] == pytest.approx([1e-8 / 4, 1e-8 / 2, 1e-8 / 3])
    [alone] = grouped(third, whole=(one, other, third, again))
    assert alone["name"] == "block.hidden#2"
    assert learning_rate_multipliers([one, other, third]) == dict.fromkeys(
        ("block.hidden", "block.hidden#1", "block.hidden#2"), 1.0
    )


def test_a_group_has_base_values_times_factors() -> None:
    [group] = grouped(plan((128, 128), (32, 32)), lr=torch.tensor(2.0))
    assert isinstance(group["lr"], Tensor) and float(group["lr"]) == 0.5
    assert (group["lr_mult"], group["width_mult"], group["role"], group["name"]) == (1 / 4, 4, "hidden", "hidden.r4")
    assert (group["eps"], group["weight_decay"]) == pytest.approx((1e-8 / 4, 0.4))
    [group] = grouped(plan((128,), (32,), Declaration(Role.VECTOR, "ones")), eps=None)
    assert (group["name"], group["lr"], group["weight_decay"], "eps" in group) == ("vector", 1, 0, False)


def test_param_groups_know_blocks() -> None:
    make = lambda w: nn.Sequential(nn.Linear(3, w), nn.Linear(w, w), mup.MuReadout(w, 2))  # noqa: E731
    model = mup.set_base_shapes(make(16), make(4), delta=make(8))
    options = Options(depth_alpha=0.5)
    groups = param_groups(
        model, lr=1.0, eps=1.0, options=options, depth_mult=4.0, in_block=lambda name: name.startswith("1.")
    )
    by_name = {g["name"]: (g["lr"], g["eps"]) for g in groups}
    assert by_name["block.hidden.r4"] == pytest.approx((1 / 4 / 2, 1 / 4 / 2))
    assert by_name["block.vector"] == pytest.approx((1 / 2, 1 / 4 / 2)) and by_name["vector"] == (1, 1 / 4)
    inside = {p.name: p.in_block for _, p in planned(model, in_block=lambda name: name.startswith("1."))}
    assert inside == {
        "0.weight": False,
        "0.bias": False,
        "1.weight": True,
        "1.bias": True,
        "2.weight": False,
        "2.bias": False,
    }
    assert not any(p.in_block for _, p in planned(model))
    flat = param_groups(model, lr=1.0, eps=1.0, options=options, in_block=lambda name: True)  # as deep as the base
    assert {g["name"]: g["lr"] for g in flat} == {
        "block.input": 1,
        "block.vector": 1,
        "block.vector#1": 1,  # eps differs: the bias of the readout has no infinite dimension
        "block.hidden.r4": 1 / 4,
        "block.output": 1,
    }
