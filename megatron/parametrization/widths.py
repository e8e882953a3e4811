"""Widths of a GPT and of its base model, and the forward factors that follow from the two. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron.errors import ConfigError
from mup.rules import Options, attention_scale, depth_scaling, readout_mult


@dataclass(frozen=True)
class Widths:
    """The dimensions that may grow between base and target, in global (unsharded) sizes."""

    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    num_layers: int

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden-size {self.hidden_size} is not a multiple of num-attention-heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"num-attention-heads {self.num_attention_heads} is not a multiple of num-kv-heads {self.num_kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def multiplier(self, base: Widths) -> float:
        """m: hidden size over the base's."""
        return self.hidden_size / base.hidden_size

    def depth_multiplier(self, base: Widths) -> float:
        """mL: layers over the base's."""
        return self.num_layers / base.num_layers

    def scaled_from(self, base: Widths, hidden_size: int) -> Widths:
        """The member of the family through `base` and `self` that has this hidden size, at self's depth.

        A dimension that grows between base and self grows in proportion to the hidden size; one that is equal in
        both stays. Where base and self have one hidden size, heads stay and the ffn grows.
        """
        same = self.hidden_size == base.hidden_size

        def scale(base_size: int, size: int, grows: bool) -> int:
            return round(base_size * hidden_size / base.hidden_size) if grows else size

        return dataclasses.replace(
            self,
            hidden_size=hidden_size,
            num_attention_heads=scale(
                base.num_attention_heads,
                self.num_attention_heads,
                not same and base.num_attention_heads != self.num_attention_heads,
            ),
            num_kv_heads=scale(
                base.num_kv_heads, self.num_kv_heads, not same and base.num_kv_heads != self.num_kv_heads
            ),
            ffn_hidden_size=scale(
                base.ffn_hidden_size,
                self.ffn_hidden_size,
                same or base.ffn_hidden_size != self.ffn_hidden_size,
            ),
        )


@dataclass(frozen=True)
class Multipliers:
    """The tunable muP hyperparameters: multipliers multiply, temperatures divide; all 1 by default."""

    init_scale: float = 1.0
    attn_temp: float = 1.0
    output_temp: float = 1.0
    embedding_mult: float = 1.0
    rp_embedding_mult: float = 1.0


@dataclass(frozen=True)
class ForwardFactors:
    """What the layers multiply by: embeddings, q.k, logits, and the output of each residual branch."""

    embedding: float
    attention: float
    logits: float
    residual: float


def forward_factors(widths: Widths, base: Widths, options: Options, multipliers: Multipliers) -> ForwardFactors:
    """Forward factors of a model; in SP those of an unscaled Transformer."""
    if not options.mup:
        return ForwardFactors(1.0, attention_scale(widths.head_dim, widths.head_dim), 1.0, 1.0)
    return ForwardFactors(
        embedding=multipliers.embedding_mult,
        attention=attention_scale(widths.head_dim, base.head_dim, multipliers.attn_temp),
        logits=readout_mult(widths.multiplier(base), multipliers.output_temp),
        residual=depth_scaling(widths.depth_multiplier(base), options.depth_alpha).forward,
    )
