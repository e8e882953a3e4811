"""Linear layers and norms that declare the role of their parameters."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

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


class ScaleNorm(nn.Module):
    """g x / max(|x|, epsilon) over the last dimension, times `mult`. The gain g is one number.

    Nguyen and Salazar, "Transformers without Tears", arXiv:1910.05895, eq. 5. Here g starts at 1, as in GPT-NeoX, so
    the entries of the result are 1 / sqrt(size) at first: in muP `mult` keeps them from falling with the width.
    """

    def __init__(self, epsilon: float, mult: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.epsilon = epsilon
        self.mult = mult

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).clamp(min=self.epsilon)
        y: Tensor = x / length * self.weight
        return (y if self.mult == 1.0 else y * self.mult).to(x.dtype)


def _bare_norm(kind: Norm, size: int, epsilon: float, bias: bool, mult: float) -> nn.Module:
    if kind == "rmsnorm":
        return nn.RMSNorm(size, eps=epsilon)
    if kind == "scalenorm":
        return ScaleNorm(epsilon, mult)
    return nn.LayerNorm(size, eps=epsilon, elementwise_affine=kind == "layernorm", bias=bias)


def make_norm(
    kind: Norm,
    size: int,
    epsilon: float,
    bias: bool,
    tp: TensorParallel = SERIAL,
    *,
    mult: float = 1.0,
    over_heads: bool = False,
) -> nn.Module:
    """Norm over the last dimension. Gain and bias have the role of a vector.

    mult: factor of ScaleNorm; the other norms have the same size at every width.
    The gradients are partial if the ranks normalise different data: other positions under sequence parallelism,
    other heads with `over_heads`.
    """
    layer = _bare_norm(kind, size, epsilon, bias, mult)
    for name, _ in layer.named_parameters():
        declare_as(layer, name, _GAIN if name == "weight" else _BIAS)
    if over_heads or tp.cuts_sequence:
        mark_partial_grads(layer)
    return layer
