"""The numbers that describe a GPT."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron.parametrization.widths import Widths


@dataclass(frozen=True)
class GPTConfig:
    """Shape and switches of one model; `padded_vocab_size` >= `vocab_size` rows exist, the rest get no probability."""

    widths: Widths
    vocab_size: int
    padded_vocab_size: int
    seq_length: int
    max_position_embeddings: int
    pos_emb: str = "rotary"
    rotary_pct: float = 1.0
    rotary_base: float = 10000.0
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    norm_bias: bool = True
    qk_norm: bool = False
    activation: str = "gelu"
    attention_bias: bool = True
    mlp_bias: bool = True
    parallel_residual: bool = False
    shared_norm: bool = False
    tied_readout: bool = True
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    checkpoint_every: int = 0

    def with_widths(self, widths: Widths) -> GPTConfig:
        return dataclasses.replace(self, widths=widths)

    def without_padding(self) -> GPTConfig:
        return dataclasses.replace(self, padded_vocab_size=self.vocab_size)
