"""Linear layers and norms that declare the role of their parameters."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from megatron.architecture import Norm
from megatron.mpu import SERIAL, ColumnParallelLinear, RowParallelLinear, TensorParallel, mark_partial_grads
from mup.roles import Declaration, declare_as
from mup.rules import Role

_GAIN = Declaration(Role.VECTOR, "ones")
_BIAS = Declaration(Role.VECTOR, "zeros")

_Linear = TypeVar("_Linear", ColumnParallelLinear, RowParallelLinear)


def _declared(layer: _Linear, declaration: Declaration) -> _Linear:
    declare_as(layer, "weight", declaration)
    if layer.bias is not None:
        declare_as(layer, "bias", _BIAS)
    return layer


def column_linear(
    in_features: int, out_features: int, bias: bool, declaration: Declaration, tp: TensorParallel, blocks: int = 1
) -> ColumnParallelLinear:
    """Weight [out_features, in_features] split by rows, at the start of a tensor-parallel region."""
    layer = ColumnParallelLinear(
        in_features, out_features, bias, group=tp.group, blocks=blocks, sequence_parallel=tp.sequence_parallel
    )
    return _declared(layer, declaration)


def row_linear(
    in_features: int, out_features: int, bias: bool, declaration: Declaration, tp: TensorParallel
) -> RowParallelLinear:
    """Weight [out_features, in_features] split by columns, at the end of a tensor-parallel region."""
    layer = RowParallelLinear(in_features, out_features, bias, group=tp.group, sequence_parallel=tp.sequence_parallel)
    return _declared(layer, declaration)


def make_norm(
    kind: Norm, size: int, epsilon: float, bias: bool, tp: TensorParallel = SERIAL, *, over_heads: bool = False
) -> nn.Module:
    """LayerNorm or RMSNorm over the last dimension. Gain and bias have the role of a vector.

    The gradients are partial if the ranks normalise different data: other positions under sequence parallelism,
    other heads with `over_heads`.
    """
    layer: nn.LayerNorm | nn.RMSNorm
    layer = nn.RMSNorm(size, eps=epsilon) if kind == "rmsnorm" else nn.LayerNorm(size, eps=epsilon, bias=bias)
    declare_as(layer, "weight", _GAIN)
    if isinstance(layer, nn.LayerNorm) and bias:
        declare_as(layer, "bias", _BIAS)
    if over_heads or tp.cuts_sequence:
        mark_partial_grads(layer)
    return layer
