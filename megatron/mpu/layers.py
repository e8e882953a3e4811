"""Tensor-parallel linear layers and embedding (Megatron-LM, arXiv:1909.08053, section 3).

Parameters are created uninitialised, with the local shape. Hidden states are [..., s, h]. With
`sequence_parallel`, hidden states outside the tensor-parallel region are this rank's slice of s.
In the formulas for communication, n is the size of the group, X and Y are the bytes of a whole tensor, and the
result is the number of bytes that each rank sends (`communicator.sent_bytes`).
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
    """Multiply x [..., s, h], or its sequence slice, by this rank's rows of the weight: [..., s, out / n].

    The backward pass reuses the gathered input and does not gather it again. This takes more memory than
    Megatron-LM's variant and sends no more bytes than a layer without sequence parallelism.
    """
    x = gather_from_sequence(x, group) if sequence_parallel else copy_to_region(x, group)
    return F.linear(x, weight, bias)


def _leave_region(y: Tensor, group: Communicator, sequence_parallel: bool) -> Tensor:
    """Sum y [..., s, h] over the ranks and return the sum, or this rank's sequence slice of it."""
    return reduce_scatter_to_sequence(y, group) if sequence_parallel else reduce_from_region(y, group)


class ColumnParallelLinear(ShardedModule):
    """Linear layer [..., s, in] -> [..., s, out / n]: the rows of the [out, in] weight and the bias are split.

    blocks: number of equal blocks of rows, each split over all ranks; 2 for a fused [up; gate].
    Raises ConfigError if `out_features` is not a multiple of blocks * n.

    Communication, where X is the bytes of the input [..., s, in]:
    plain: none in the forward pass; one all_reduce of X in the backward pass, 2 (n-1)/n X bytes.
    sequence parallel: one all_gather forward, one reduce_scatter backward, (n-1)/n X bytes each.
    There is no communication in the backward pass if the input needs no gradient.
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
    """Linear layer [..., s, in / n] -> [..., s, out]: the columns of the [out, in] weight are split, the bias is not.

    The bias is added once, after the sum over the ranks. Under sequence parallelism each rank adds the bias to its
    own positions, and the gradient of the bias is partial (see `megatron.mpu.grads`).
    Raises ConfigError if `in_features` is not a multiple of n.

    Communication, where Y is the bytes of the output [..., s, out]:
    plain: one all_reduce of Y in the forward pass, 2 (n-1)/n Y bytes; none in the backward pass.
    sequence parallel: one reduce_scatter forward, one all_gather backward, (n-1)/n Y bytes each.
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
    """Embedding of int64 tokens, [..., s] -> [..., s, h]: the rows of the table are split over the ranks.

    A rank adds zero for a token whose row it does not hold.
    rows: rows of the whole table, including padding. Raises ConfigError if it is not a multiple of n.
    A token outside the table raises torch's IndexError in a group of size 1. In a larger group its embedding is
    zero, and `vocab_parallel_cross_entropy` returns NaN for it as a label.

    Communication, where Y is the bytes of the output [..., s, h]:
    plain: one all_reduce of Y in the forward pass, 2 (n-1)/n Y bytes; none in the backward pass.
    sequence parallel: one reduce_scatter forward, one all_gather backward, (n-1)/n Y bytes each.
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
