"""Unit-scaled muP (u-muP): a separate table in absolute sizes, without a base model.

Every tensor starts at scale one. Forward factors and learning rates depend on width and depth.
Source: Blake et al., u-muP: The Unit-Scaled Maximal Update Parametrization, arXiv:2407.17465 (Table 2). The text of
that table was not available. The cells were checked against the public code of its authors, the unit-scaling library
(functional.linear and linear_readout for the factors, optim.lr_scale_func_adam for the rates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mup.rules import INNER, Role

__all__ = ["UnitScaling", "residual_mult", "unit_scaling"]


@dataclass(frozen=True)
class UnitScaling:
    """u-muP scalings of one parameter.

    init_std: of the weight. forward: factor on W x. backward: factor on the gradient with respect to x. lr: factor on
    Adam's eta.
    """

    init_std: float = 1.0
    forward: float = 1.0
    backward: float = 1.0
    lr: float = 1.0


def unit_scaling(role: Role, *, fan_in: int, fan_out: int, depth: int | None = None) -> UnitScaling:
    """u-muP scalings of one parameter under Adam.

    fan_in, fan_out: sizes of the matrix product. The fan_out of an embedding is the hidden size.
    depth: number of residual layers if the parameter is inside one, otherwise None. `residual_mult` is the factor on
    the branch itself.
    Raises ValueError for a size below 1.
    """
    if min(fan_in, fan_out, 1 if depth is None else depth) < 1:
        raise ValueError(f"expected sizes of at least 1, got fan_in {fan_in}, fan_out {fan_out}, depth {depth}")
    in_branch = 1.0 if depth is None else residual_mult(depth)
    if role in INNER:  # one factor for both passes: it keeps the output at scale one
        scale = 1.0 / math.sqrt(fan_in)
        return UnitScaling(forward=scale, backward=scale, lr=scale * in_branch)
    if role is Role.OUTPUT:  # no layer follows the readout, so its gradient can have a separate factor
        return UnitScaling(forward=1.0 / fan_in, backward=1.0 / math.sqrt(fan_out))
    if role is Role.INPUT:  # decreases with the width, unlike in muP: an experimental result of the paper
        return UnitScaling(lr=1.0 / math.sqrt(fan_out))
    return UnitScaling(lr=in_branch)


def residual_mult(depth: int) -> float:
    """Factor 1/sqrt(depth) on each of `depth` residual branches, and on the learning rates inside them.

    residual_add of the library also weights the stream, which keeps the sum of branch and stream at scale one.
    """
    return 1.0 / math.sqrt(depth)
