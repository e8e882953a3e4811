"""Scaled rotary frequencies equal those of Hugging Face's Llama, at every length and in every head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.architecture import RopeScaling
from megatron.errors import ConfigError
from megatron.model.rotary import RotaryEmbedding
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import model_config
from tests.model.helpers import build, config, tokens

DIM, ORIGINAL = 64, 32


def oracle(parameters: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of transformers, fp32 [length, DIM]."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="pip install -e .[hf]")
    described = llama.LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_theta": 500000.0, **parameters},
    )
    rotary = llama.LlamaRotaryEmbedding(described)
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


CASES = {
    "linear": (dict(rope_type="linear", factor=4.0), RopeScaling(rope_type="linear", factor=4.0)),
    "dynamic": (
        dict(rope_type="dynamic", factor=4.0),
        RopeScaling(rope_type="dynamic", factor=4.0, original_positions=ORIGINAL),
    ),
    "llama3": (
        dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=ORIGINAL,
        ),
        RopeScaling(rope_type="llama3", factor=8.0, original_positions=ORIGINAL),
    ),
    "llama3 with other bounds": (
        dict(
            rope_type="llama3",
            factor=3.0,
            low_freq_factor=0.5,
            high_freq_factor=2.0,
            original_max_position_embeddings=100,
        ),
        RopeScaling(rope_type="llama3", factor=3.0, original_positions=100, low_freq_factor=0.5, high_freq_factor=2.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [7, ORIGINAL, 100])
def test_tables_equal_those_of_transformers(name, length):
    theirs, ours = CASES[name]
    expected = oracle(theirs, length)
    rotary = RotaryEmbedding(DIM, 500000.0, ours)
    for _ in "twice":  # the second time from the table
        for table, correct in zip(rotary._tables(length, torch.device("cpu")), expected, strict=True):
            torch.testing.assert_close(table, correct, rtol=0, atol=2e-5)
    unscaled = RotaryEmbedding(DIM, 500000.0)._tables(length, torch.device("cpu"))[0]
    same = name == "dynamic" and length <= ORIGINAL  # a short context is not stretched
    assert torch.allclose(unscaled, expected[0], atol=2e-5) == same


def test_dynamic_scaling_depends_only_on_the_length():
    """A long context before does not change a shorter one: the result does not depend on earlier calls."""
    rotary = RotaryEmbedding(DIM, 10000.0, CASES["dynamic"][1])
    x = torch.randn(1, 1, 40, DIM)
    before = rotary(x)
    rotary(torch.randn(1, 1, 90, DIM))
    assert torch.equal(rotary(x), before)


def test_the_key_reaches_the_model():
    base = dict(
        num_layers=1, hidden_size=64, num_attention_heads=2, seq_length=16, max_position_embeddings=64, pos_emb="rotary"
    )
    section = dict(rope_type="dynamic", factor=2.0)
    args = NeoXArgs.from_dict({**base, "rope_scaling": section}, world_size=1)
    expected = RopeScaling(rope_type="dynamic", factor=2.0, original_positions=64)
    assert model_config(args).architecture.rope_scaling == expected
    args = NeoXArgs.from_dict(
        {**base, "rope_scaling": {**section, "original_max_position_embeddings": 8}}, world_size=1
    )
    scaling = model_config(args).architecture.rope_scaling
    assert scaling is not None and scaling.original_positions == 8
    x = tokens()
    plain, scaled = (build(config(rope_scaling=s))(x) for s in (None, CASES["linear"][1]))
    assert not torch.allclose(plain, scaled, atol=1e-3)


def test_two_rotated_entries_cannot_be_scaled_dynamically():
    with pytest.raises(ConfigError, match="more than 2 rotated entries"):
        RotaryEmbedding(2, 10000.0, CASES["dynamic"][1])


def test_tanh_gelu_is_the_approximation():
    x = tokens()
    exact, approximate = (build(config(activation=name))(x) for name in ("gelu", "gelu_tanh"))
    difference = (exact - approximate).abs().max()
    assert 1e-5 < difference < 1e-1
