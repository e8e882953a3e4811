"""Describe a GPT without its weights: widths, which can grow, and architecture, which is fixed. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from megatron.errors import ConfigError

Positions = Literal["learned", "sinusoidal", "rotary", "rpe", "alibi", "none"]
Norm = Literal["layernorm", "rmsnorm", "scalenorm", "non_parametric_layernorm"]
PlainActivation = Literal["gelu", "gelu_tanh", "relu", "silu", "swish", "mish", "softsign"]
GatedActivation = Literal["geglu", "reglu", "swiglu", "glu", "bilinear"]
Activation = PlainActivation | GatedActivation
RopeType = Literal["linear", "dynamic", "llama3"]
Router = Literal["sinkhorn", "topk"]

GATED_ACTIVATIONS = get_args(GatedActivation)


@dataclass(frozen=True)
class Widths:
    """Dimensions that can grow from base to target, as global (unsharded) sizes."""

    hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    num_layers: int

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size: {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads: {self.num_attention_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def multiplier(self, base: Widths) -> float:
        """Return m, the hidden size divided by the base's."""
        return self.hidden_size / base.hidden_size

    def depth_multiplier(self, base: Widths) -> float:
        """Return mL, the number of layers divided by the base's."""
        return self.num_layers / base.num_layers

    def scaled_from(self, base: Widths, hidden_size: int) -> Widths:
        """Return the widths of the family of `base` and `self` at `hidden_size`, with the depth of `self`.

        Dimensions that differ between base and self grow in proportion to the hidden size. Dimensions that are equal
        stay constant. If base and self have the same hidden size, the ffn grows and the heads stay constant.
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


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies are stretched, so that a model reads longer contexts than it was pretrained on.

    rope_type: `linear` divides every position by `factor` (Chen et al., arXiv:2306.15595). `dynamic` raises the base
    for contexts longer than the original ones (NTK-aware scaling). `llama3` divides only the frequencies whose
    wavelength is long (Llama 3.1). original_positions: context length of the pretraining; `linear` does not use it.
    low_freq_factor, high_freq_factor: only of `llama3`.
    """

    rope_type: RopeType
    factor: float
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Experts in place of the MLP in every `interval`-th block, the first one included.

    num_experts: MLPs per such block. top_k: experts per token. normalize: whether the weights of a token's experts are
    divided by their sum. jitter: the router's input is multiplied by numbers from [1 - jitter, 1 + jitter] in training.
    balance_coeff, z_coeff: weights of the balancing loss and of the router's z-loss of each block.
    """

    num_experts: int
    top_k: int = 1
    interval: int = 1
    router: Router = "sinkhorn"
    normalize: bool = False
    jitter: float = 0.0
    balance_coeff: float = 0.0
    z_coeff: float = 0.0

    def in_block(self, index: int) -> bool:
        """Whether the block with this index, counted from 0, has experts."""
        return index % self.interval == 0

    def blocks(self, num_layers: int) -> int:
        """Number of blocks with experts."""
        return sum(map(self.in_block, range(num_layers)))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Layer types, biases, residuals, dropout and recomputation of a GPT, independent of its size.

    position_offset: row of the learned table for the first position. sliding_window: number of tokens before its own
    that a token attends to; None for all. shared_norm: attention and MLP share one norm (parallel residual only).
    checkpoint_every: number of blocks that are recomputed together; 0 disables recomputation.
    """

    pos_emb: Positions = "rotary"
    position_offset: int = 0
    rotary_pct: float = 1.0
    rotary_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rpe_num_buckets: int = 32
    rpe_max_distance: int = 128
    sliding_window: int | None = None
    norm: Norm = "layernorm"
    norm_epsilon: float = 1e-5
    norm_bias: bool = True
    qk_norm: bool = False
    activation: Activation = "gelu"
    experts: MixtureOfExperts | None = None
    attention_bias: bool = True
    mlp_bias: bool = True
    parallel_residual: bool = False
    shared_norm: bool = False
    tied_readout: bool = True
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        activations = (*get_args(PlainActivation), *GATED_ACTIVATIONS)
        for name, known in (("pos_emb", get_args(Positions)), ("norm", get_args(Norm)), ("activation", activations)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{name}: {value!r} is not supported; expected {', '.join(known[:-1])} or {known[-1]}"
                )

    @property
    def gated(self) -> bool:
        """Whether the first matrix of the MLP consists of an up half and a gate half."""
        return self.activation in GATED_ACTIVATIONS
