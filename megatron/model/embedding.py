"""Token embedding, absolute positions, and the readout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.rotary import inverse_frequencies
from megatron.mpu import (
    SERIAL,
    Shard,
    ShardedModule,
    TensorParallel,
    VocabParallelEmbedding,
    column_parallel_linear,
    local_shape,
    mark_partial_grads,
)
from mup.roles import Declaration, declare_as
from mup.rules import Role

# an embedding looks rows up and does not sum over them: its fan-in is the vocabulary, which is finite
_EMBEDDING = Declaration(Role.INPUT, fan_in_dim=0)


class PositionEmbedding(nn.Module):
    """Learned positions offset .. offset + length - 1 -> [length, h], or this rank's slice of them.

    first_row: row of the table for position 0; OPT's is 2. The rows before it are not used.
    """

    def __init__(self, rows: int, hidden_size: int, tp: TensorParallel = SERIAL, *, first_row: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, hidden_size))
        declare_as(self, "weight", _EMBEDDING)
        self.tp = tp
        self.first_row = first_row
        if tp.cuts_sequence:
            mark_partial_grads(self)

    def forward(self, offset: int, length: int, like: Tensor) -> Tensor:
        return F.embedding(self.first_row + _own_positions(offset, length, like.device, self.tp), self.weight)


class SinusoidalPositions(nn.Module):
    """Fixed positions offset .. offset + length - 1 -> [length, h], or this rank's slice of them, in `like`'s dtype.

    Vaswani et al., arXiv:1706.03762, section 3.5, in the order of GPT-NeoX: all sines, then all cosines.
    """

    def __init__(self, hidden_size: int, tp: TensorParallel = SERIAL) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.tp = tp

    def forward(self, offset: int, length: int, like: Tensor) -> Tensor:
        frequencies = inverse_frequencies(self.hidden_size, 10000.0).to(like.device)
        angles = torch.outer(_own_positions(offset, length, like.device, self.tp).float(), frequencies)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(like.dtype)


def _own_positions(offset: int, length: int, device: torch.device, tp: TensorParallel) -> Tensor:
    positions = torch.arange(offset, offset + length, device=device)
    return tp.group.own_slice(positions, 0) if tp.cuts_sequence else positions


class Embedding(nn.Module):
    """Token embeddings, plus those of absolute positions, times `mult`, then dropout.

    rows: rows of the token table, including vocabulary padding. positions: None without absolute positions.
    """

    def __init__(
        self,
        rows: int,
        hidden_size: int,
        positions: PositionEmbedding | SinusoidalPositions | None,
        *,
        mult: float,
        dropout: float,
        tp: TensorParallel = SERIAL,
    ) -> None:
        super().__init__()
        self.word_embeddings = VocabParallelEmbedding(
            rows, hidden_size, group=tp.group, sequence_parallel=tp.sequence_parallel
        )
        declare_as(self.word_embeddings, "weight", _EMBEDDING)
        self.position_embeddings = positions
        self.mult = mult
        self.dropout = dropout
        self.tp = tp

    def forward(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """tokens: int64 [b, s] at positions offset .. offset + s - 1 -> [b, s, h], or this rank's slice of s."""
        x = self.word_embeddings(tokens)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(offset, tokens.shape[1], x)
        if self.mult != 1.0:
            x = x * self.mult
        return self.tp.hidden_dropout(x, self.dropout, self.training)


class Readout(ShardedModule):
    """Hidden states to logits: [b, s, h] -> [b, s, vocab_size]. Rows beyond the vocabulary have no probability.

    The rows are split over n tensor-parallel ranks. With n > 1 the result is [b, s, rows / n], and
    `vocab_parallel_cross_entropy` excludes the padding.
    mult: 1 / (m * mup-output-temp). It multiplies the hidden states, which are smaller than the logits.
    tied: whether the readout uses the weight of the embedding, which is then an argument of `forward`.
    Communication is that of ColumnParallelLinear.
    """

    weight: nn.Parameter

    def __init__(
        self,
        hidden_size: int,
        rows: int,
        vocab_size: int,
        *,
        mult: float,
        tied: bool,
        tp: TensorParallel = SERIAL,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.mult = mult
        self.tp = tp
        if tied:
            self.register_parameter("weight", None)
        else:
            spec = Shard(0)
            weight = nn.Parameter(torch.empty(local_shape((rows, hidden_size), spec, tp.group.size)))
            self.add_sharded("weight", weight, spec)
            declare_as(self, "weight", Declaration(Role.OUTPUT))

    def forward(self, x: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        weight = self.weight if tied_weight is None else tied_weight
        x = x if self.mult == 1.0 else x * self.mult
        logits = column_parallel_linear(x, weight, None, self.tp.group, self.tp.sequence_parallel)
        return logits[..., : self.vocab_size] if self.tp.group.size == 1 else logits
