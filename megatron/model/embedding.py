"""Token embedding, learned positions, and the readout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.parametrization.declare import Declaration, declare
from mup.rules import Role

# rows are looked up, not summed over: the fan-in of an embedding is its (finite) vocabulary
_EMBEDDING = Declaration(Role.INPUT, fan_in_dim=0)


def _table(rows: int, hidden_size: int) -> nn.Embedding:
    # normal_ on creation would cost time and random numbers: the parametrization draws the weights
    table = nn.Embedding.from_pretrained(torch.empty(rows, hidden_size), freeze=False)
    declare(table.weight, _EMBEDDING)
    return table


class Embedding(nn.Module):
    """Token (and learned position) embeddings times `mult`, then dropout."""

    def __init__(self, rows: int, hidden_size: int, positions: int | None, *, mult: float, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = _table(rows, hidden_size)
        self.position_embeddings = _table(positions, hidden_size) if positions else None
        self.mult = mult
        self.dropout = dropout

    def forward(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """tokens: int64 [b, s] at positions offset .. offset + s - 1 -> [b, s, h]."""
        x = self.word_embeddings(tokens)
        if self.position_embeddings is not None:
            positions = torch.arange(offset, offset + tokens.shape[1], device=tokens.device)
            x = x + self.position_embeddings(positions)
        if self.mult != 1.0:
            x = x * self.mult
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Readout(nn.Module):
    """Hidden states to logits: [b, s, h] -> [b, s, vocab_size]. Rows beyond the vocabulary get no probability.

    `mult` is 1 / (m * mup-output-temp). It multiplies the hidden states: they are fewer than the logits.
    """

    def __init__(self, hidden_size: int, rows: int, vocab_size: int, *, mult: float, tied: bool) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.mult = mult
        if tied:
            self.register_parameter("weight", None)
        else:
            self.weight = declare(nn.Parameter(torch.empty(rows, hidden_size)), Declaration(Role.OUTPUT))

    def forward(self, x: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        weight = self.weight if tied_weight is None else tied_weight
        return F.linear(x if self.mult == 1.0 else x * self.mult, weight)[..., : self.vocab_size]
