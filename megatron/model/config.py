"""The numbers that describe a GPT."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron.architecture import Architecture, Widths


@dataclass(frozen=True, kw_only=True)
class GPTConfig(Architecture):
    """One model: its architecture at some widths, with a vocabulary and a number of positions.

    `padded_vocab_size` >= `vocab_size` rows exist; the rows beyond the vocabulary get no probability.
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
