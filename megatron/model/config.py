"""Configuration of a GPT model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron.architecture import Architecture, Widths


@dataclass(frozen=True, kw_only=True)
class GPTConfig(Architecture):
    """Configuration of one model: an architecture with widths, a vocabulary and a number of positions.

    padded_vocab_size: rows of the embedding, at least `vocab_size`. Rows beyond the vocabulary have no probability.
    """

    widths: Widths
    vocab_size: int
    padded_vocab_size: int
    seq_length: int
    max_position_embeddings: int

    def with_widths(self, widths: Widths) -> GPTConfig:
        return dataclasses.replace(self, widths=widths)

    def without_padding(self) -> GPTConfig:
        return dataclasses.replace(self, padded_vocab_size=self.vocab_size)
