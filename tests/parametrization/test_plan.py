"""Plans, initial weights and groups of a real model follow the rules."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.architecture import Widths
from megatron.errors import ConfigError
from megatron.model.build import materialise
from megatron.parametrization.groups import parameter_groups
from megatron.parametrization.init import draw, parameter_seed
from megatron.parametrization.widths import Multipliers, forward_factors
from mup.init_methods import InitMethods
from mup.plan import unscaled_fan_ins
from mup.roles import declarations
from mup.rules import Options, Role
from tests.parametrization.helpers import BASE, deeper, make_plan, scaled

ADAM = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}


def groups_of(plan, mode="scaled"):
    return parameter_groups(materialise(plan, 1).named_parameters(), plan.parameters, **ADAM, weight_decay_mode=mode)


@pytest.mark.parametrize("options", [{}, {"activation": "swiglu", "norm": "rmsnorm"}, {"tied_readout": True}])
@pytest.mark.parametrize("init", [InitMethods(), InitMethods("small_init", "wang_init"), InitMethods("xavier_uniform")])
def test_mup_at_base_width_equals_sp_bit_for_bit(options, init):
    sp = make_plan(BASE, options=Options(mup=False), init=init, **options)
    mup = make_plan(BASE, options=Options(mup=True), init=init, **options)
    assert mup.factors == sp.factors
    weights_sp, weights_mup = (dict(materialise(plan, 7).named_parameters()) for plan in (sp, mup))
    assert all(torch.equal(weights_sp[name], weights_mup[name]) for name in weights_sp)

    def described(plan):
        return [{k: v for k, v in group.items() if k != "params"} for group in groups_of(plan)]

    assert described(sp) == described(mup)


@settings(max_examples=20, deadline=None)
@given(mult=st.sampled_from([2, 3, 4, 8]), heads_grow=st.booleans())
def test_the_rules_of_the_table(mult, heads_grow):
    plan = make_plan(scaled(mult, heads_grow=heads_grow), activation="swiglu")
    groups = {name: group for group in groups_of(plan) for name in group["parameter_names"]}
    for name, parameter in plan.parameters.items():
        group = groups[name]
        hidden = parameter.role is Role.HIDDEN
        assert group["lr"] == pytest.approx(ADAM["lr"] / (mult if hidden else 1))
        assert group["eps"] == pytest.approx(ADAM["eps"] / mult)
        decay = {Role.HIDDEN: mult, Role.VECTOR: 0}.get(parameter.role, 1)
        assert group["weight_decay"] == pytest.approx(ADAM["weight_decay"] * decay)
        if parameter.declaration.init == "matrix":
            assert parameter.init_std == pytest.approx(0.02 / (math.sqrt(mult) if hidden else 1))
    assert plan.factors.logits == pytest.approx(1 / mult)
    head_dim, base_head_dim = plan.config.widths.head_dim, BASE.head_dim
    assert plan.factors.attention == pytest.approx(math.sqrt(base_head_dim) / head_dim)


def test_gqa_with_fixed_kv_heads_scales_by_fan_in():
    base = Widths(32, 4, 2, 128, 2)
    wide = Widths(128, 16, 2, 512, 2)  # query heads grow, key-value heads do not: rows grow less than columns
    qkv = make_plan(wide, base).parameters["layers.0.attention.query_key_value.weight"]
    assert qkv.fan_in_mult == 4.0
    assert qkv.fan_out_mult == (16 + 4) * 8 / ((4 + 4) * 8)
    assert qkv.scaling.lr == 0.25 and qkv.scaling.init_std == 0.5


def test_ffn_has_a_separate_multiplier():
    base, wide = Widths(32, 2, 2, 64, 2), Widths(64, 4, 4, 512, 2)
    plan = make_plan(wide, base)
    down, up = (plan.parameters[f"layers.0.mlp.dense_{way}.weight"] for way in ("4h_to_h", "h_to_4h"))
    assert (up.fan_in_mult, down.fan_in_mult) == (2.0, 8.0)
    assert (up.scaling.lr, down.scaling.lr) == (1 / 2, 1 / 8)
    names = {group["name"]: group["lr_mult"] for group in groups_of(plan)}
    assert names["block.hidden.r2"] == 1 / 2 and names["block.hidden.r8"] == 1 / 8


def test_the_first_matrix_of_an_mlp_of_fixed_width_starts_like_a_readout():
    """[SPEC] condition 1: the norm of a map from a width to a fixed number of units is sqrt(fan_out / fan_in)."""
    base, wide = Widths(32, 2, 2, 64, 2), Widths(128, 8, 8, 64, 2)
    plan = make_plan(wide, base)
    down, up = (plan.parameters[f"layers.0.mlp.dense_{way}.weight"] for way in ("4h_to_h", "h_to_4h"))
    assert (up.scaling.init_std, up.scaling.lr) == (1 / 4, 1 / 4)
    assert (down.scaling.init_std, down.scaling.lr) == (1, 1)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_depth_rule_affects_only_blocks(alpha):
    wide = deeper(scaled(2), 8)
    plan = make_plan(wide, options=Options(depth_alpha=alpha))
    flat = make_plan(wide)
    assert plan.factors.residual == pytest.approx(4**-alpha)
    for name, parameter in plan.parameters.items():
        before = flat.parameters[name].scaling
        inside = name.startswith("layers.")
        assert parameter.scaling.lr == pytest.approx(before.lr * (4 ** (alpha - 1) if inside else 1))
        assert parameter.scaling.eps == pytest.approx(before.eps * (4**-alpha if inside else 1))
    dense = "layers.0.attention.dense.weight"  # 1/sqrt(2L) with the two layers of the base, under every depth rule
    for planned in (plan, flat):
        assert planned.parameters[dense].init_std == pytest.approx(0.02 / math.sqrt(2 * 2) / math.sqrt(2))


def test_formulas_with_the_width_are_evaluated_at_base_and_scaled_once():
    plan = make_plan(scaled(4), init=InitMethods("small_init", "wang_init"))
    qkv = plan.parameters["layers.0.attention.query_key_value.weight"].init_std
    dense = plan.parameters["layers.0.attention.dense.weight"].init_std
    assert qkv == pytest.approx(math.sqrt(2 / (5 * 32)) / 2)
    assert dense == pytest.approx(2 / (2 * math.sqrt(32)) / 2)
    embedding = plan.parameters["embedding.word_embeddings.weight"].init_std
    assert embedding == pytest.approx(math.sqrt(2 / (5 * 32)))


@pytest.mark.parametrize(
    "method",
    ["normal", "scaled_normal", "small_init", "wang_init", "xavier_uniform", "xavier_normal", "orthogonal"],
)
def test_drawn_weights_have_the_planned_std(method):
    plan = make_plan(scaled(4), init=InitMethods(method, method), multipliers=Multipliers(init_scale=1.5))
    for name, parameter in plan.parameters.items():
        weight = draw(parameter, seed=3)
        assert tuple(weight.shape) == parameter.shape
        if weight.dim() > 1 and "embedding" not in name:
            measured = float(weight.square().mean().sqrt())
            assert measured == pytest.approx(parameter.init_std, rel=0.05), name


def test_initial_weights_depend_only_on_seed_and_name():
    tied, untied = make_plan(scaled(2), tied_readout=True), make_plan(scaled(2), tied_readout=False)
    a, b = (dict(materialise(plan, 5).named_parameters()) for plan in (tied, untied))
    assert all(torch.equal(a[name], b[name]) for name in a)  # an additional parameter does not shift the draws
    c = dict(materialise(untied, 6).named_parameters())
    drawn = [name for name, parameter in untied.parameters.items() if parameter.init_std > 0]
    assert not any(torch.equal(b[name], c[name]) for name in drawn)
    assert len({parameter_seed(5, name) for name in b}) == len(b)


def test_padding_rows_are_zero_and_do_not_shift_the_others():
    padded = materialise(make_plan(BASE, padded_vocab_size=128), 1).embedding.word_embeddings.weight
    plain = materialise(make_plan(BASE, padded_vocab_size=61), 1).embedding.word_embeddings.weight
    assert torch.equal(padded[:61], plain)
    assert not padded[61:].any()


def test_query_zero_init_zeroes_only_queries():
    base = Widths(32, 4, 2, 128, 2)
    plan = make_plan(base, base, query_zero_init=True)
    model = materialise(plan, 1)
    rows = model.layers[0].attention.query_key_value.weight.view(2, 4, 8, 32)  # [kv heads, 2 q + k + v, d, h]
    assert not rows[:, :2].any()
    assert rows[:, 2:].abs().min() > 0


def test_readout_zero_init():
    readout = materialise(make_plan(BASE, options=Options(readout_zero_init=True)), 1).readout.weight
    assert readout is not None and not readout.any()


@pytest.mark.parametrize(
    ("mode", "coupled", "independent"), [("scaled", 0.4, 0), ("constant", 0.1, 0), ("independent", 0, 0.1)]
)
def test_weight_decay_modes(mode, coupled, independent):
    plan = make_plan(scaled(4), options=Options(weight_decay_mode=mode))
    hidden = next(group for group in groups_of(plan, mode) if group["role"] == "hidden")
    assert hidden["weight_decay"] == pytest.approx(coupled)
    assert hidden["independent_weight_decay"] == pytest.approx(independent)
    vector = next(group for group in groups_of(plan, mode) if group["role"] == "vector")
    assert vector["weight_decay"] == vector["independent_weight_decay"] == 0


def test_groups_partition_the_parameters_and_have_unique_names():
    plan = make_plan(scaled(4))
    model = materialise(plan, 1)
    groups = parameter_groups(model.named_parameters(), plan.parameters, **ADAM)
    names = [name for group in groups for name in group["parameter_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len({group["name"] for group in groups}) == len(groups)
    assert all(group["params"] for group in groups)


def test_forward_factors_of_sp_ignore_the_multipliers():
    multipliers = Multipliers(attn_temp=2.0, output_temp=3.0, embedding_mult=4.0)
    sp = forward_factors(scaled(4), BASE, Options(mup=False), multipliers)
    assert (sp.embedding, sp.logits, sp.residual) == (1, 1, 1)
    mup = forward_factors(scaled(4), BASE, Options(), multipliers)
    assert (mup.embedding, mup.logits) == (4.0, pytest.approx(1 / 12))


def test_a_dimension_that_does_not_grow_is_listed():
    wide = Widths(128, 8, 8, 128, 2)  # the ffn size of the base
    plan = make_plan(wide, Widths(32, 2, 2, 128, 2))
    assert unscaled_fan_ins(plan.parameters.values()) == [f"layers.{i}.mlp.dense_4h_to_h.weight" for i in range(2)]
    assert unscaled_fan_ins(make_plan(BASE).parameters.values()) == []


def test_every_parameter_declares_a_role():
    model = materialise(make_plan(BASE), 1)
    assert set(declarations(model)) == {name for name, _ in model.named_parameters()}
    model.layers[0].mlp.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="layers.0.mlp.extra has no declared role"):
        declarations(model)


@pytest.mark.parametrize(("heads", "kv"), [(3, 3), (4, 3)])
def test_inconsistent_widths_raise(heads, kv):
    with pytest.raises(ConfigError, match="num_attention_heads"):
        Widths(32, heads, kv, 128, 2)


GROUPED = Widths(hidden_size=64, num_attention_heads=4, num_kv_heads=2, ffn_hidden_size=128, num_layers=2)


def _qkv_stds(plan) -> tuple[float, float]:
    """RMS of the query rows, and of the key and value rows, in the first block."""
    name = "layers.0.attention.query_key_value.weight"
    widths = plan.config.widths
    rows = draw(plan.parameters[name], 3).view(widths.num_kv_heads, -1, widths.hidden_size)  # [kv heads, q + k + v, h]
    others, values = rows[:, : -2 * widths.head_dim], rows[:, -2 * widths.head_dim :]
    return float(others.square().mean().sqrt()), float(values.square().mean().sqrt())


@pytest.mark.parametrize("mult", [2, 4, 16])
def test_keys_and_values_of_fixed_heads_start_like_a_readout(mult):
    """They have sigma / r instead of sigma / sqrt(r). Growing heads, a growing head dimension and SP are unchanged."""
    queries, values = _qkv_stds(make_plan(scaled(mult, base=GROUPED), base=GROUPED))
    assert queries == pytest.approx(0.02 / math.sqrt(mult), rel=0.03)
    assert values == pytest.approx(0.02 / mult, rel=0.03)
    growing = dataclasses.replace(scaled(mult, base=GROUPED), num_kv_heads=2 * mult)
    wide_heads = dataclasses.replace(scaled(mult, base=GROUPED), num_attention_heads=4)
    for plan in (
        make_plan(growing, base=GROUPED),
        make_plan(wide_heads, base=GROUPED),
        make_plan(scaled(mult, base=GROUPED), options=Options(mup=False)),
    ):
        others, values = _qkv_stds(plan)
        assert values == pytest.approx(others, rel=0.05)
    half = dataclasses.replace(scaled(16, base=GROUPED), num_kv_heads=8)  # 4 times as many at 16 times the width
    name = "layers.0.attention.query_key_value.weight"
    parts = [(part.name, factor) for part, factor in make_plan(half, base=GROUPED).parameters[name].parts]
    assert parts == [("key", 0.5), ("value", 0.5)]
    assert make_plan(GROUPED, base=GROUPED).parameters[name].parts == ()
