"""The GPT model: a flat list of named layers, and the plain module that runs them in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.model.alibi import alibi_slopes
from megatron.model.attention import Attention, KeyValueCache
from megatron.model.block import Block
from megatron.model.config import GPTConfig
from megatron.model.embedding import Embedding, PositionEmbedding, Readout, SinusoidalPositions
from megatron.model.layers import make_norm
from megatron.model.mlp import MLP
from megatron.model.moe import MoE
from megatron.model.relative_position import RelativePositionBias
from megatron.model.rotary import RotaryEmbedding
from megatron.model.score_mask import ScoreMask
from megatron.mpu import SERIAL, TensorParallel
from megatron.parametrization.widths import ForwardFactors

LayerFactory = Callable[[], nn.Module]


def _make_hidden_norm(config: GPTConfig, factors: ForwardFactors, tp: TensorParallel) -> nn.Module:
    size = config.widths.hidden_size
    return make_norm(config.norm, size, config.norm_epsilon, config.norm_bias, tp, mult=factors.norm)


def _make_head_norm(config: GPTConfig, factors: ForwardFactors) -> nn.Module:
    size, mult = config.widths.head_dim, factors.head_norm
    return make_norm(config.norm, size, config.norm_epsilon, config.norm_bias, mult=mult, over_heads=True)


def _make_mlp(config: GPTConfig, factors: ForwardFactors, index: int, tp: TensorParallel) -> nn.Module:
    """The MLP of a block, or its router and experts."""
    hidden_size, ffn_hidden_size = config.widths.hidden_size, config.widths.ffn_hidden_size
    if config.experts is None or not config.experts.in_block(index):
        return MLP(hidden_size, ffn_hidden_size, config.activation, config.mlp_bias, tp)
    return MoE(config.experts, hidden_size, ffn_hidden_size, config.activation, router_mult=factors.logits, tp=tp)


def _make_mask(config: GPTConfig, tp: TensorParallel) -> ScoreMask:
    if config.pos_emb != "alibi":
        return ScoreMask(config.sliding_window)
    slopes = alibi_slopes(config.widths.num_attention_heads)
    own = len(slopes) // tp.group.size
    return ScoreMask(config.sliding_window, slopes[own * tp.group.rank : own * (tp.group.rank + 1)])


def _make_block(config: GPTConfig, factors: ForwardFactors, mask: ScoreMask, index: int, tp: TensorParallel) -> Block:
    widths = config.widths
    rotary = None
    if config.pos_emb == "rotary":
        dim = int(widths.head_dim * config.rotary_pct)
        rotary = RotaryEmbedding(dim, config.rotary_base, config.rope_scaling)
    position_bias = None
    if config.pos_emb == "rpe":
        position_bias = RelativePositionBias(
            widths.num_attention_heads, config.rpe_num_buckets, config.rpe_max_distance, mult=factors.positions, tp=tp
        )
    attention = Attention(
        widths.hidden_size,
        widths.num_attention_heads,
        widths.num_kv_heads,
        scale=factors.attention,
        bias=config.attention_bias,
        rotary=rotary,
        dropout=config.attention_dropout,
        qk_norm=partial(_make_head_norm, config, factors) if config.qk_norm else None,
        mask=mask,
        position_bias=position_bias,
        tp=tp,
    )
    shared = config.parallel_residual and config.shared_norm
    return Block(
        attention,
        _make_mlp(config, factors, index, tp),
        _make_hidden_norm(config, factors, tp),
        None if shared else _make_hidden_norm(config, factors, tp),
        parallel_residual=config.parallel_residual,
        residual_mult=factors.residual,
        dropout=config.hidden_dropout,
        tp=tp,
    )


def _make_positions(config: GPTConfig, tp: TensorParallel) -> PositionEmbedding | SinusoidalPositions | None:
    if config.pos_emb == "sinusoidal":
        return SinusoidalPositions(config.widths.hidden_size, tp)
    if config.pos_emb != "learned":
        return None
    rows, hidden_size = config.max_position_embeddings, config.widths.hidden_size
    return PositionEmbedding(rows, hidden_size, tp, first_row=config.position_offset)


def make_embedding(
    config: GPTConfig, factors: ForwardFactors, tp: TensorParallel = SERIAL, *, positions: bool = True
) -> Embedding:
    """Build the embedding.

    positions: with False only the token table is built, which the last stage of a pipeline ties to the readout.
    """
    return Embedding(
        config.padded_vocab_size,
        config.widths.hidden_size,
        _make_positions(config, tp) if positions else None,
        mult=factors.embedding,
        dropout=config.hidden_dropout,
        tp=tp,
    )


def _make_readout(config: GPTConfig, factors: ForwardFactors, tp: TensorParallel) -> Readout:
    return Readout(
        config.widths.hidden_size,
        config.padded_vocab_size,
        config.vocab_size,
        mult=factors.logits,
        tied=config.tied_readout,
        tp=tp,
    )


def layer_list(
    config: GPTConfig, factors: ForwardFactors, tp: TensorParallel = SERIAL
) -> list[tuple[str, LayerFactory]]:
    """The model as a list of (global name, factory) from tokens to logits. A pipeline can split it at any layer."""
    mask = _make_mask(config, tp)
    blocks: list[tuple[str, LayerFactory]] = [
        (f"layers.{i}", partial(_make_block, config, factors, mask, i, tp)) for i in range(config.widths.num_layers)
    ]
    return [
        ("embedding", partial(make_embedding, config, factors, tp)),
        *blocks,
        ("final_norm", partial(_make_hidden_norm, config, factors, tp)),
        ("readout", partial(_make_readout, config, factors, tp)),
    ]


class GPT(nn.Module):
    """int64 tokens [b, s] -> logits [b, s, vocab_size], or a tensor-parallel rank's columns of the logits."""

    def __init__(self, config: GPTConfig, factors: ForwardFactors, tp: TensorParallel = SERIAL) -> None:
        super().__init__()
        self.config = config
        self.factors = factors
        self.embedding = make_embedding(config, factors, tp)
        mask = _make_mask(config, tp)
        self.layers = nn.ModuleList(_make_block(config, factors, mask, i, tp) for i in range(config.widths.num_layers))
        self.final_norm = _make_hidden_norm(config, factors, tp)
        self.readout = _make_readout(config, factors, tp)

    def forward(self, tokens: Tensor, caches: Sequence[KeyValueCache] | None = None) -> Tensor:
        offset = caches[0].length if caches else 0
        x = self.embedding(tokens, offset)
        x = self._run_checkpointed(x) if self.config.checkpoint_every and self.training else self._run(x, caches)
        tied = self.embedding.word_embeddings.weight if self.config.tied_readout else None
        logits: Tensor = self.readout(self.final_norm(x), tied)
        return logits

    def global_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over (layout-independent name, parameter), like the method of a pipeline stage."""
        return self.named_parameters()

    def global_name(self, local: str) -> str:
        """Layout-independent name of a parameter or module: `local` itself."""
        return local

    def _run(self, x: Tensor, caches: Sequence[KeyValueCache] | None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, caches[i] if caches else None)
        return x

    def _run_checkpointed(self, x: Tensor) -> Tensor:
        """Keep only the input of every `checkpoint_every`-th block and recompute the rest in the backward pass."""

        def span(start: int) -> Callable[[Tensor], Tensor]:
            def run(x: Tensor) -> Tensor:
                for layer in self.layers[start : start + self.config.checkpoint_every]:
                    x = layer(x)
                return x

            return run

        for start in range(0, len(self.layers), self.config.checkpoint_every):
            x = checkpoint(span(start), x, use_reentrant=False)
        return x
