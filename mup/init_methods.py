"""Init methods by name: their standard deviation in the base model, and how they draw.

Formulas that contain a width are evaluated at the base and multiplied by the rule once (`mup.rules`), so no width
counts twice. The names are those of GPT-NeoX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import init

from mup.roles import Declaration

__all__ = ["BaseSizes", "InitMethods", "draw_"]

UNIFORM = ("xavier_uniform",)
ORTHOGONAL = ("orthogonal", "scaled_orthogonal")


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of the base model that appear in the formulas."""

    hidden_size: int
    num_layers: int


@dataclass(frozen=True)
class InitMethods:
    """Init methods of a model.

    matrix: method of all matrices except the following. output_matrix: method of matrices that end a residual branch.
    std: standard deviation in the normal methods.
    """

    matrix: str = "normal"
    output_matrix: str = "scaled_normal"
    std: float = 0.02

    def of(self, declaration: Declaration) -> str:
        """The method that draws a matrix with this declaration."""
        return self.output_matrix if declaration.init == "output_matrix" else self.matrix

    def base_std(self, method: str, fan_in: int, fan_out: int, base: BaseSizes) -> float:
        """Standard deviation of the entries of a matrix of the base model. Raises ValueError for an unknown method.

        small_init: sqrt(2 / 5h), Nguyen and Salazar, arXiv:1910.05895. wang_init: 2 / (L sqrt(h)), Wang's GPT-J.
        scaled_normal: std / sqrt(2L), Megatron-LM. xavier: sqrt(2 / (fan_in + fan_out)), Glorot and Bengio 2010.
        orthogonal: entries of a matrix with orthonormal rows or columns have std 1 / sqrt(max(fan_in, fan_out)).
        """
        hidden_size, num_layers = base.hidden_size, base.num_layers
        formulas = {
            "normal": lambda: self.std,
            "scaled_normal": lambda: self.std / math.sqrt(2.0 * num_layers),
            "single_residual_scaled_normal": lambda: self.std / math.sqrt(num_layers),
            "small_init": lambda: math.sqrt(2.0 / (5.0 * hidden_size)),
            "wang_init": lambda: 2.0 / (num_layers * math.sqrt(hidden_size)),
            "xavier_uniform": lambda: math.sqrt(2.0 / (fan_in + fan_out)),
            "xavier_normal": lambda: math.sqrt(2.0 / (fan_in + fan_out)),
            "orthogonal": lambda: 1.0 / math.sqrt(max(fan_in, fan_out)),
            "scaled_orthogonal": lambda: 1.0 / math.sqrt(max(fan_in, fan_out)) / math.sqrt(2.0 * num_layers),
        }
        if method not in formulas:
            raise ValueError(f"init-method: expected one of {', '.join(formulas)}, got {method!r}")
        return formulas[method]()


def draw_(tensor: Tensor, method: str, std: float, generator: Generator | None = None) -> Tensor:
    """Fill the tensor from the distribution of `method`, with mean 0 and standard deviation `std`."""
    with torch.no_grad():
        if method in UNIFORM:
            bound = math.sqrt(3.0) * std
            return tensor.uniform_(-bound, bound, generator=generator)
        if method in ORTHOGONAL:
            init.orthogonal_(tensor, generator=generator)
            return tensor.mul_(std * math.sqrt(max(tensor.shape)))
        return tensor.normal_(0.0, std, generator=generator)
