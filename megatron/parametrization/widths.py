"""Forward factors of a GPT, computed from its widths and those of its base model."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.architecture import Widths
from mup.rules import Options, attention_scale, depth_scaling, readout_mult


@dataclass(frozen=True)
class Multipliers:
    """Tunable muP hyperparameters. Multipliers multiply, temperatures divide. All are 1 by default."""

    init_scale: float = 1.0
    attn_temp: float = 1.0
    output_temp: float = 1.0
    embedding_mult: float = 1.0
    rp_embedding_mult: float = 1.0


@dataclass(frozen=True)
class ForwardFactors:
    """Factors that the layers apply to embeddings, q.k, logits, and the output of each residual branch.

    positions: factor of the relative position bias, the square root of the head dimension as in GPT-NeoX. In muP it is
    that of the base model, so that the bias keeps its size when the heads grow.
    norm, head_norm: factors of ScaleNorm over the hidden size and over a head. It divides by a length, which grows as
    the square root of the width; the other norms divide by a mean over the width.
    """

    embedding: float
    attention: float
    logits: float
    residual: float
    positions: float = 1.0
    norm: float = 1.0
    head_norm: float = 1.0


def forward_factors(widths: Widths, base: Widths, options: Options, multipliers: Multipliers) -> ForwardFactors:
    """Forward factors of a model. In SP they are those of an unscaled Transformer."""
    if not options.mup:
        scale = attention_scale(widths.head_dim, widths.head_dim)
        return ForwardFactors(1.0, scale, 1.0, 1.0, positions=widths.head_dim**0.5)
    return ForwardFactors(
        embedding=multipliers.embedding_mult,
        attention=attention_scale(widths.head_dim, base.head_dim, multipliers.attn_temp),
        logits=readout_mult(widths.multiplier(base), multipliers.output_temp),
        residual=depth_scaling(widths.depth_multiplier(base), options.depth_alpha).forward,
        positions=multipliers.rp_embedding_mult * base.head_dim**0.5,
        norm=widths.multiplier(base) ** 0.5,
        head_norm=(widths.head_dim / base.head_dim) ** 0.5,
    )
