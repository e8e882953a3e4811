"""Differentiable collectives: the backward pass of each one is its adjoint.

Megatron-LM's f and g are defined in Shoeybi et al., arXiv:1909.08053, section 3. Sequence parallelism replaces
all-reduce by all-gather and reduce-scatter: Korthikanti et al., arXiv:2205.05198, section 4.2.2.
In a group of size 1 every function returns its argument unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.mpu.communicator import Communicator

SEQUENCE_DIM = -2  # of hidden states [..., s, h]

_Operation = Callable[[Tensor], Tensor]


class _WithAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operation: _Operation, adjoint: _Operation) -> Tensor:
        ctx.adjoint = adjoint
        return operation(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.adjoint(grad), None, None


_with_adjoint: Callable[[Tensor, _Operation, _Operation], Tensor] = _WithAdjoint.apply


def _apply(x: Tensor, group: Communicator, operation: _Operation, adjoint: _Operation) -> Tensor:
    if group.size == 1:
        return x
    return _with_adjoint(x, operation, adjoint)


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def copy_to_region(x: Tensor, group: Communicator) -> Tensor:
    """Enter a tensor-parallel region (Megatron's f). Forward: identity. Backward: sum over the ranks."""
    return _apply(x, group, _same, group.all_reduce)


def reduce_from_region(x: Tensor, group: Communicator) -> Tensor:
    """Leave a tensor-parallel region (Megatron's g). Forward: sum over the ranks. Backward: identity."""
    return _apply(x, group, group.all_reduce, _same)


def gather_from_sequence(x: Tensor, group: Communicator, dim: int = SEQUENCE_DIM) -> Tensor:
    """Enter a tensor-parallel region from sequence slices: [.., s/tp, h] -> [.., s, h].

    Each rank uses the result differently, so the backward pass is a reduce-scatter of the gradients.
    """
    return _apply(x, group, partial(group.all_gather, dim=dim), partial(group.reduce_scatter, dim=dim))


def reduce_scatter_to_sequence(x: Tensor, group: Communicator, dim: int = SEQUENCE_DIM) -> Tensor:
    """Leave a tensor-parallel region into sequence slices: [.., s, h] -> this rank's slice of the sum, [.., s/tp, h].

    The backward pass concatenates the gradients of the ranks.
    """
    return _apply(x, group, partial(group.reduce_scatter, dim=dim), partial(group.all_gather, dim=dim))
