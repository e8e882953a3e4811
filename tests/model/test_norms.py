"""Norms without a gain per entry: their results written out again, and ScaleNorm in muP."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from megatron.architecture import Widths
from megatron.model.build import forward_section, plan_model
from megatron.model.layers import ScaleNorm, make_norm
from megatron.parametrization.widths import Multipliers, forward_factors
from mup.rules import Options
from tests.model.helpers import SP, WIDTHS, build, config, parametrization, tokens

WIDE = dataclasses.replace(WIDTHS, hidden_size=128, num_attention_heads=8, num_kv_heads=8, ffn_hidden_size=192)


def test_scalenorm_divides_by_the_length():
    x = torch.randn(3, 5, 7)
    norm = make_norm("scalenorm", 7, 1e-8, True, mult=2.0)
    with torch.no_grad():
        norm.weight.fill_(1.5)
    rows = x.numpy()
    expected = 3.0 * rows / np.sqrt((rows**2).sum(-1, keepdims=True))
    torch.testing.assert_close(norm(x), torch.tensor(expected))
    assert [tuple(p.shape) for p in norm.parameters()] == [(1,)]


def test_scalenorm_divides_by_epsilon_where_the_length_is_smaller():
    norm = ScaleNorm(0.5)
    small = torch.tensor([0.06, 0.08], requires_grad=True)  # of length 0.1
    torch.testing.assert_close(norm(small), torch.tensor([0.12, 0.16]))
    zero = torch.zeros(4, requires_grad=True)
    norm(zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_scalenorm_keeps_the_dtype_and_measures_in_fp32():
    x = torch.full((1, 4096), 200.0, dtype=torch.float16)  # whose squares overflow
    assert ScaleNorm(1e-8).half()(x).dtype == torch.float16
    torch.testing.assert_close(ScaleNorm(1e-8).half()(x), torch.full((1, 4096), 1 / 64, dtype=torch.float16))


def test_a_non_parametric_norm_is_layernorm_without_weights():
    x = torch.randn(2, 3, 8)
    norm = make_norm("non_parametric_layernorm", 8, 1e-3, True)
    rows = x.numpy().astype(np.float64)
    centred = rows - rows.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    torch.testing.assert_close(norm(x), torch.tensor(expected, dtype=torch.float32))
    assert list(norm.parameters()) == []


@pytest.mark.parametrize("norm", ["scalenorm", "non_parametric_layernorm"])
def test_at_base_width_mup_is_sp_bit_for_bit(norm):
    described, x = config(norm=norm, qk_norm=True), tokens()
    assert torch.equal(build(described)(x), build(described, base=described.widths)(x))


def test_the_entries_keep_their_size_when_the_width_grows():
    """Of a vector with entries +-1: 1 / sqrt(n) in SP, and 1 / sqrt(base n) in muP."""
    base = Widths(hidden_size=16, num_attention_heads=4, num_kv_heads=4, ffn_hidden_size=24, num_layers=2)
    wide = dataclasses.replace(base, hidden_size=256)
    mup, sp = (forward_factors(wide, base, options, Multipliers()) for options in (Options(mup=True), SP))
    ones = torch.ones(256)
    assert ScaleNorm(1e-8, sp.norm)(ones)[0] == 1 / 16
    assert ScaleNorm(1e-8, mup.norm)(ones)[0] == 1 / 4
    assert ScaleNorm(1e-8, mup.head_norm)(ones[:64])[0] == 1 / 2  # heads of 4 grow to 64


def test_the_gain_is_a_number_without_a_width():
    plan = plan_model(config(norm="scalenorm", **dataclasses.asdict(WIDE)), parametrization_of_wide())
    for name in ("layers.0.input_layernorm.weight", "layers.1.post_attention_layernorm.weight", "final_norm.weight"):
        gain = plan.parameters[name]
        assert gain.shape == (1,)
        assert (gain.scaling.lr, gain.scaling.eps, gain.scaling.weight_decay) == (1.0, 1.0, 0.0)
    assert plan.factors.norm == 2.0 and "norm" in forward_section(plan)["factors"]


def parametrization_of_wide():
    return parametrization(config(norm="scalenorm", **dataclasses.asdict(WIDE)), base=WIDTHS)
