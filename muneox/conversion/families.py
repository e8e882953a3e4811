"""Families of models in Hugging Face's transformers: what each can represent, and its config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.errors import CheckpointError
from megatron.model.config import GPTConfig
from megatron.parametrization.widths import ForwardFactors
from muneox.conversion.folding import plain_factors
from muneox.conversion.tensors import Group, Shape, llama_groups, neox_groups, neox_zeros, no_zeros

# activation here -> hidden_act there
PLAIN = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
}
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "glu": "sigmoid", "bilinear": "linear"}


@dataclass(frozen=True)
class Family:
    """A model class of transformers.

    groups, zeros: its tensors. problems: sentences on what it cannot represent, each starting with the key.
    settings: its part of config.json. factors: the multipliers that the class applies itself.
    """

    name: str
    model_type: str
    architecture: str
    groups: Callable[[GPTConfig], Iterator[Group]]
    zeros: Callable[[GPTConfig], Mapping[str, Shape]]
    problems: Callable[[GPTConfig], Iterator[str]]
    settings: Callable[[GPTConfig, ForwardFactors], dict[str, Any]]

    def factors(self, config: GPTConfig, factors: ForwardFactors) -> ForwardFactors:
        """The multipliers that remain in the model; the others are folded into its weights."""
        return factors if self.name == "granite" else plain_factors(config.widths)


# --- what a class cannot represent ---


def _common_problems(config: GPTConfig) -> Iterator[str]:
    if config.pos_emb != "rotary":
        yield f"pos_emb: {config.pos_emb} positions; it has only rotary ones"
    if config.experts is not None:
        yield "moe_num_experts: it has no mixture of experts"
    if config.qk_norm:
        yield "use_qk_layernorm: it has no norm of queries and keys"


def _neox_problems(config: GPTConfig) -> Iterator[str]:
    yield from _common_problems(config)
    if config.norm != "layernorm":
        yield f"norm: {config.norm}; it has only layernorm"
    if config.activation not in PLAIN:
        why = "its MLP is not gated" if config.gated else f"it has only {', '.join(PLAIN)}"
        yield f"activation: {config.activation}; {why}"
    if config.widths.num_kv_heads != config.widths.num_attention_heads:
        yield f"num_kv_heads: {config.widths.num_kv_heads}; it has no grouped-query attention"
    if config.sliding_window is not None:
        yield "sliding_window_width: it has no sliding window"


def _llama_problems(config: GPTConfig) -> Iterator[str]:
    yield from _common_problems(config)
    if config.norm != "rmsnorm":
        yield f"norm: {config.norm}; it has only rmsnorm"
    if config.activation not in GATED:
        yield f"activation: {config.activation}; its MLP is always gated"
    if config.parallel_residual:
        yield "gpt_j_residual: it has no parallel residual"
    if config.rotary_pct != 1.0:
        yield f"rotary_pct: {config.rotary_pct:g}; it rotates whole heads"


def _without_window(config: GPTConfig) -> Iterator[str]:
    yield from _llama_problems(config)
    if config.sliding_window is not None:
        yield "sliding_window_width: it has no sliding window; mistral has one"


def _mistral_problems(config: GPTConfig) -> Iterator[str]:
    yield from _llama_problems(config)
    if config.attention_bias:
        yield "use_bias_in_attn_linear: it has no biases; llama has them"
    if config.mlp_bias:
        yield "use_bias_in_mlp: it has no biases; llama has them"


# --- config.json ---


def _positions(config: GPTConfig) -> dict[str, Any]:
    """The number of positions and rope_scaling, under the names that all versions of transformers read."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"max_position_embeddings": config.max_position_embeddings}
    section: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling.rope_type == "dynamic":  # transformers scales from max_position_embeddings on
        return {"max_position_embeddings": scaling.original_positions, "rope_scaling": section}
    if scaling.rope_type == "llama3":
        section |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    return {"max_position_embeddings": config.max_position_embeddings, "rope_scaling": section}


def _common_settings(config: GPTConfig) -> dict[str, Any]:
    widths = config.widths
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": widths.hidden_size,
        "num_hidden_layers": widths.num_layers,
        "num_attention_heads": widths.num_attention_heads,
        "intermediate_size": widths.ffn_hidden_size,
        "attention_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tied_readout,
        "use_cache": True,
        **_positions(config),
    }


def _neox_settings(config: GPTConfig, factors: ForwardFactors) -> dict[str, Any]:
    return {
        **_common_settings(config),
        "hidden_act": PLAIN[config.activation],
        "hidden_dropout": config.hidden_dropout,
        "layer_norm_eps": config.norm_epsilon,
        "rotary_pct": config.rotary_pct,
        "rotary_emb_base": config.rotary_base,
        "use_parallel_residual": config.parallel_residual,
    }


def _llama_settings(config: GPTConfig, factors: ForwardFactors) -> dict[str, Any]:
    return {
        **_common_settings(config),
        "hidden_act": GATED[config.activation],
        "num_key_value_heads": config.widths.num_kv_heads,
        "mlp_bias": config.mlp_bias,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary_base,
    }


def _mistral_settings(config: GPTConfig, factors: ForwardFactors) -> dict[str, Any]:
    settings = _llama_settings(config, factors)
    del settings["mlp_bias"], settings["attention_bias"]
    # transformers counts the token itself as part of the window
    window = None if config.sliding_window is None else config.sliding_window + 1
    return {**settings, "sliding_window": window, "head_dim": config.widths.head_dim}


def _granite_settings(config: GPTConfig, factors: ForwardFactors) -> dict[str, Any]:
    return {
        **_llama_settings(config, factors),
        "embedding_multiplier": factors.embedding,
        "attention_multiplier": factors.attention,
        "residual_multiplier": factors.residual,
        "logits_scaling": 1.0 / factors.logits,
    }


FAMILIES = {
    family.name: family
    for family in (
        Family("neox", "gpt_neox", "GPTNeoXForCausalLM", neox_groups, neox_zeros, _neox_problems, _neox_settings),
        Family("llama", "llama", "LlamaForCausalLM", llama_groups, no_zeros, _without_window, _llama_settings),
        Family(
            "mistral", "mistral", "MistralForCausalLM", llama_groups, no_zeros, _mistral_problems, _mistral_settings
        ),
        Family("granite", "granite", "GraniteForCausalLM", llama_groups, no_zeros, _without_window, _granite_settings),
    )
}
_AUTOMATIC = ("neox", "llama", "mistral")


def choose_family(config: GPTConfig, name: str | None) -> Family:
    """The family `name`, or the first one that can represent the model.

    Raises CheckpointError, which names every feature of the model that the family cannot represent.
    """
    if name is None:
        fits = (each for each in _AUTOMATIC if not any(FAMILIES[each].problems(config)))
        name = next(fits, "neox" if config.norm == "layernorm" else "mistral" if config.sliding_window else "llama")
    family = FAMILIES[name]
    problems = list(family.problems(config))
    if problems:
        raise CheckpointError(
            f"{family.architecture} of transformers cannot represent this model:\n  " + "\n  ".join(problems)
        )
    return family


def hugging_face_config(
    family: Family, config: GPTConfig, factors: ForwardFactors, dtype: str, end_token: int | None
) -> dict[str, Any]:
    """Content of config.json. dtype: of the weights, as torch names it. end_token: id, or None if unknown."""
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        **family.settings(config, family.factors(config, factors)),
    }
