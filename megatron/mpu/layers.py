"""Linear layers and the embedding, cut over tensor-parallel ranks (Megatron-LM, arXiv:1909.08053, section 3).

Parameters are created empty, with the local shape. Hidden states are [..., s, h]; with `sequence_parallel`
those outside the tensor-parallel region are this rank's slice of s.
In the closed forms of communication n is the size of the group, X and Y are the bytes of a whole tensor, and
each rank sends the bytes given (`communicator.sent_bytes`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.mpu.collectives import (
    copy_to_region,
    gather_from_sequence,
    reduce_from_region,
    reduce_scatter_to_sequence,
)
from megatron.mpu.communicator import Communicator
from megatron.mpu.grads import mark_partial_grads
from megatron.mpu.sharding import Shard, ShardedModule, local_shape


def _empty(shape: tuple[int, ...], spec: Shard, group: Communicator) -> nn.Parameter:
    return nn.Parameter(torch.empty(local_shape(shape, spec, group.size)))


def column_parallel_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: Communicator, sequence_parallel: bool
) -> Tensor:
    """x [..., s, h] (or its sequence slice) times this rank's rows of the weight: [..., s, out / n].

    The gathered input is kept for the backward pass, not gathered again: more memory than Megatron-LM's
    variant, and no more bytes than without sequence parallelism.
    """
    x = gather_from_sequence(x, group) if sequence_parallel else copy_to_region(x, group)
    return F.linear(x, weight, bias)


def _leave_region(y: Tensor, group: Communicator, sequence_parallel: bool) -> Tensor:
    """The sum of the ranks' y [..., s, h], or this rank's sequence slice of it."""
    return reduce_scatter_to_sequence(y, group) if sequence_parallel else reduce_from_region(y, group)


class ColumnParallelLinear(ShardedModule):
    """[..., s, in] -> [..., s, out / n]: the rows of the [out, in] weight, and the bias, are cut.

    blocks: equal blocks of rows that are cut one by one, 2 for a fused [up; gate].
    ConfigError where `out_features` does not divide.

    Communication, X the bytes of the input [..., s, in]:
    plain: forward nothing; backward one all_reduce of X, 2 (n-1)/n X bytes.
    sequence parallel: forward one all_gather, backward one reduce_scatter, (n-1)/n X bytes each.
    An input that needs no gradient spares the backward call.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group: Communicator,
        blocks: int = 1,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.group = group
        self.sequence_parallel = sequence_parallel
        spec = Shard(0, blocks)
        self.add_sharded("weight", _empty((out_features, in_features), spec, group), spec)
        if bias:
            self.add_sharded("bias", _empty((out_features,), spec, group), spec)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return column_parallel_linear(x, self.weight, self.bias, self.group, self.sequence_parallel)


class RowParallelLinear(ShardedModule):
    """[..., s, in / n] -> [..., s, out]: the columns of the [out, in] weight are cut, the bias is not.

    The bias is added once, after the sum over the ranks. Under sequence parallelism each rank adds it to its
    own positions, so that its gradient is partial (see `megatron.mpu.grads`).
    ConfigError where `in_features` does not divide.

    Communication, Y the bytes of the output [..., s, out]:
    plain: forward one all_reduce of Y, 2 (n-1)/n Y bytes; backward nothing.
    sequence parallel: forward one reduce_scatter, backward one all_gather, (n-1)/n Y bytes each.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group: Communicator,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.group = group
        self.sequence_parallel = sequence_parallel
        spec = Shard(1)
        self.add_sharded("weight", _empty((out_features, in_features), spec, group), spec)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        if bias and sequence_parallel:
            mark_partial_grads(self, "bias")

    def forward(self, x: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.linear(x, self.weight, self.bias)
        y = _leave_region(F.linear(x, self.weight), self.group, self.sequence_parallel)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # autocast leaves the bias in fp32


class VocabParallelEmbedding(ShardedModule):
    """int64 tokens [..., s] -> [..., s, h]: rows of the table are cut; a rank adds zero for tokens it lacks.

    rows: rows of the whole table, padding included. ConfigError where they do not divide.
    In a group of one a token outside the table is torch's IndexError; in a larger one its embedding is zero
    (and as a label `vocab_parallel_cross_entropy` answers it with NaN).

    Communication, Y the bytes of the output [..., s, h]:
    plain: forward one all_reduce of Y, 2 (n-1)/n Y bytes; backward nothing.
    sequence parallel: forward one reduce_scatter, backward one all_gather, (n-1)/n Y bytes each.
    """

    weight: nn.Parameter

    def __init__(self, rows: int, hidden_size: int, *, group: Communicator, sequence_parallel: bool = False) -> None:
        super().__init__()
        self.rows, self.hidden_size = rows, hidden_size
        self.group = group
        self.sequence_parallel = sequence_parallel
        spec = Shard(0)
        self.add_sharded("weight", _empty((rows, hidden_size), spec, group), spec)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(tokens, self.weight)
        local_rows = self.weight.shape[0]
        local = tokens - self.group.rank * local_rows
        elsewhere = (local < 0) | (local >= local_rows)
        x = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        x = x.masked_fill(elsewhere.unsqueeze(-1), 0.0)
        return _leave_region(x, self.group, self.sequence_parallel)
