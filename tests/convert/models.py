"""Models of each family with random weights."""

from __future__ import annotations

from typing import Any

from megatron.architecture import RopeScaling, Widths
from megatron.model import GPT
from megatron.model.build import ModelPlan, materialise, plan_model
from tests.model.helpers import build, config, parametrization

LLAMA: dict[str, Any] = dict(
    norm="rmsnorm",
    norm_epsilon=1e-6,
    activation="swiglu",
    attention_bias=False,
    mlp_bias=False,
    rotary_base=500000.0,
    tied_readout=False,
)
SCALING = RopeScaling(rope_type="llama3", factor=8.0, original_positions=16)
FAMILIES: dict[str, dict[str, Any]] = {
    "neox": dict(rotary_pct=0.25, parallel_residual=True, tied_readout=False),
    "neox, sequential and tied": dict(tied_readout=True),
    "neox, one norm": dict(parallel_residual=True, shared_norm=True, tied_readout=False, norm_epsilon=1e-3),
    "neox, few biases": dict(attention_bias=False, mlp_bias=False, norm_bias=False, activation="gelu_tanh"),
    "llama": LLAMA,
    "llama, grouped": dict(LLAMA, num_kv_heads=2, rope_scaling=SCALING, max_position_embeddings=64),
    "llama, tied": dict(LLAMA, num_kv_heads=2, tied_readout=True),
    "llama, biases": dict(LLAMA, attention_bias=True, mlp_bias=True, activation="geglu"),
}
BASE = Widths(hidden_size=32, num_attention_heads=4, num_kv_heads=4, ffn_hidden_size=48, num_layers=2)


SCALENORM = "scalenorm"  # which no family of Hugging Face has
_OTHERS = {SCALENORM: dict(norm="scalenorm", pos_emb="learned", tied_readout=False)}


def model(family: str, **changes: Any) -> GPT:
    return build(config(**{**(FAMILIES | _OTHERS)[family], **changes})).eval()


def plan(family: str, **changes: Any) -> ModelPlan:
    described = config(**{**(FAMILIES | _OTHERS)[family], **changes})
    return plan_model(described, parametrization(described))


__all__ = ["BASE", "FAMILIES", "LLAMA", "SCALENORM", "SCALING", "materialise", "model", "plan"]
