"""Tensors of Hugging Face's models, and the parameters of ours that they are made of.

The same table serves both directions: `split` cuts one of our parameters into their tensors, `join` is its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megatron.architecture import Widths
from megatron.model.config import GPTConfig

Shape = tuple[int, ...]


def _alone(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


def _first(parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


@dataclass(frozen=True)
class Group:
    """Our parameter `ours`, and the names of the tensors that it is cut into."""

    ours: str
    theirs: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] = _alone
    join: Callable[[Sequence[Tensor]], Tensor] = _first

    def shapes(self, shape: Shape) -> dict[str, Shape]:
        """Shapes of their tensors by name, given the shape of our parameter."""
        parts = self.split(torch.empty(shape, device="meta"))
        return {name: tuple(part.shape) for name, part in zip(self.theirs, parts, strict=True)}


def split_qkv(x: Tensor, widths: Widths) -> tuple[Tensor, ...]:
    """Fused rows, ordered by key-value head, -> all queries, all keys, all values."""
    queries = widths.num_attention_heads // widths.num_kv_heads
    by_head = x.unflatten(0, (widths.num_kv_heads, (queries + 2) * widths.head_dim))
    sizes = [queries * widths.head_dim, widths.head_dim, widths.head_dim]
    return tuple(part.flatten(0, 1) for part in by_head.split(sizes, dim=1))


def join_qkv(parts: Sequence[Tensor], widths: Widths) -> Tensor:
    """All queries, all keys, all values -> fused rows, ordered by key-value head."""
    return torch.cat([part.unflatten(0, (widths.num_kv_heads, -1)) for part in parts], dim=1).flatten(0, 1)


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(2)


def _twice(x: Tensor) -> tuple[Tensor, ...]:
    return (x, x)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


# --- GPTNeoXForCausalLM ---

_NEOX_PARTS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def neox_groups(config: GPTConfig) -> Iterator[Group]:
    """Tensors of GPTNeoXForCausalLM that have parameters here."""
    norms = ("weight", "bias") if config.norm_bias else ("weight",)
    yield Group("embedding.word_embeddings.weight", ("gpt_neox.embed_in.weight",))
    for i in range(config.widths.num_layers):
        ours, theirs = f"layers.{i}", f"gpt_neox.layers.{i}"
        first, second = f"{theirs}.input_layernorm", f"{theirs}.post_attention_layernorm"
        for kind in norms:
            if config.shared_norm:  # the model has two norms, which then are equal
                yield Group(f"{ours}.input_layernorm.{kind}", (f"{first}.{kind}", f"{second}.{kind}"), _twice)
            else:
                yield Group(f"{ours}.input_layernorm.{kind}", (f"{first}.{kind}",))
                yield Group(f"{ours}.post_attention_layernorm.{kind}", (f"{second}.{kind}",))
        for part in _NEOX_PARTS:
            bias = config.attention_bias if part.startswith("attention") else config.mlp_bias
            for kind in ("weight", "bias") if bias else ("weight",):
                yield Group(f"{ours}.{part}.{kind}", (f"{theirs}.{part}.{kind}",))
    for kind in norms:
        yield Group(f"final_norm.{kind}", (f"gpt_neox.final_layer_norm.{kind}",))
    if not config.tied_readout:
        yield Group("readout.weight", ("embed_out.weight",))


def neox_zeros(config: GPTConfig) -> dict[str, Shape]:
    """Biases that GPTNeoXForCausalLM always has and this model has not, by name. They are zero."""
    hidden, ffn = config.widths.hidden_size, config.widths.ffn_hidden_size
    zeros: dict[str, Shape] = {}
    for i in range(config.widths.num_layers):
        layer = f"gpt_neox.layers.{i}"
        if not config.mlp_bias:
            zeros |= {f"{layer}.mlp.dense_h_to_4h.bias": (ffn,), f"{layer}.mlp.dense_4h_to_h.bias": (hidden,)}
        if not config.norm_bias:
            zeros |= {f"{layer}.{norm}_layernorm.bias": (hidden,) for norm in ("input", "post_attention")}
    return zeros if config.norm_bias else zeros | {"gpt_neox.final_layer_norm.bias": (hidden,)}


# --- LlamaForCausalLM, MistralForCausalLM, GraniteForCausalLM ---


def llama_groups(config: GPTConfig) -> Iterator[Group]:
    """Tensors of LlamaForCausalLM and of models with its names."""
    split, join = partial(split_qkv, widths=config.widths), partial(join_qkv, widths=config.widths)
    yield Group("embedding.word_embeddings.weight", ("model.embed_tokens.weight",))
    for i in range(config.widths.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        yield Group(f"{ours}.input_layernorm.weight", (f"{theirs}.input_layernorm.weight",))
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            projections = tuple(f"{theirs}.self_attn.{x}_proj.{kind}" for x in "qkv")
            yield Group(f"{ours}.attention.query_key_value.{kind}", projections, split, join)
            yield Group(f"{ours}.attention.dense.{kind}", (f"{theirs}.self_attn.o_proj.{kind}",))
        yield Group(f"{ours}.post_attention_layernorm.weight", (f"{theirs}.post_attention_layernorm.weight",))
        for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
            up_and_gate = (f"{theirs}.mlp.up_proj.{kind}", f"{theirs}.mlp.gate_proj.{kind}")
            yield Group(f"{ours}.mlp.dense_h_to_4h.{kind}", up_and_gate, _halves, _cat)
            yield Group(f"{ours}.mlp.dense_4h_to_h.{kind}", (f"{theirs}.mlp.down_proj.{kind}",))
    yield Group("final_norm.weight", ("model.norm.weight",))
    if not config.tied_readout:
        yield Group("readout.weight", ("lm_head.weight",))


def no_zeros(config: GPTConfig) -> Mapping[str, Shape]:
    """Nothing: the biases of these models are optional."""
    return {}
