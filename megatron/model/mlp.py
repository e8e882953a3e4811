"""The feed-forward block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.architecture import Activation, GatedActivation, PlainActivation
from megatron.model.layers import column_linear, row_linear
from megatron.mpu import SERIAL, TensorParallel
from mup.roles import Declaration
from mup.rules import Role


def _identity(x: Tensor) -> Tensor:
    return x


PLAIN: dict[PlainActivation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "softsign": F.softsign,
}
# Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202, eq. 5 and 6
GATED: dict[GatedActivation, Callable[[Tensor], Tensor]] = {
    "geglu": F.gelu,
    "reglu": F.relu,
    "swiglu": F.silu,
    "glu": torch.sigmoid,
    "bilinear": _identity,
}


def gate_or_activate(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function between the matrices of an MLP: [.., f] -> [.., f], or [.., up half then gate half] -> [.., f]."""
    gated = {name: partial(_gate, function) for name, function in GATED.items()}
    return (PLAIN | gated)[activation]


def _gate(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    up, gate = x.chunk(2, dim=-1)
    return function(gate) * up


class MLP(nn.Module):
    """[b, s, h] -> [b, s, ffn] -> [b, s, h]. The first matrix of a gated MLP holds the up half, then the gate half."""

    def __init__(
        self, hidden_size: int, ffn_hidden_size: int, activation: Activation, bias: bool, tp: TensorParallel = SERIAL
    ) -> None:
        super().__init__()
        self.activation = gate_or_activate(activation)
        blocks = 2 if activation in GATED else 1
        matrix, output_matrix = Declaration(Role.HIDDEN), Declaration(Role.HIDDEN, "output_matrix")
        self.dense_h_to_4h = column_linear(hidden_size, blocks * ffn_hidden_size, bias, matrix, tp, blocks)
        self.dense_4h_to_h = row_linear(ffn_hidden_size, hidden_size, bias, output_matrix, tp)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))
        return y
