"""Unit-scaled muP (u-muP): a table of its own, in absolute sizes, with no base model.

Every tensor starts at scale one; forward factors and learning rates carry the width and the depth.
Source: Blake et al., u-muP: The Unit-Scaled Maximal Update Parametrization, arXiv:2407.17465 (Table 2). The text of
that table could not be consulted here: the cells were checked against the public code of its authors, the
unit-scaling library (functional.linear and linear_readout for the factors, optim.lr_scale_func_adam for the rates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mup.rules import INNER, Role

__all__ = ["UnitScaling", "residual_mult", "unit_scaling"]


@dataclass(frozen=True)
class UnitScaling:
    """init_std of the weight; factors on W x (forward) and on the gradient to x (backward); lr on Adam's eta."""

    init_std: float = 1.0
    forward: float = 1.0
    backward: float = 1.0
    lr: float = 1.0


def unit_scaling(role: Role, *, fan_in: int, fan_out: int, depth: int | None = None) -> UnitScaling:
    """The u-muP scalings of one parameter under Adam.

    fan_in, fan_out: of the matrix product; an embedding's fan_out is the hidden size. depth: number of residual
    layers where the parameter is inside one, else None; the branch itself is scaled by `residual_mult`.
    Raises ValueError for a size below 1.
    """
    if min(fan_in, fan_out, 1 if depth is None else depth) < 1:
        raise ValueError(f"sizes must be positive: fan_in {fan_in}, fan_out {fan_out}, depth {depth}")
    in_branch = 1.0 if depth is None else residual_mult(depth)
    if role in INNER:  # one factor for both passes, the one that keeps the output at scale one
        scale = 1.0 / math.sqrt(fan_in)
        return UnitScaling(forward=scale, backward=scale, lr=scale * in_branch)
    if role is Role.OUTPUT:  # nothing follows the readout, so its gradient may have the factor that keeps it at one
        return UnitScaling(forward=1.0 / fan_in, backward=1.0 / math.sqrt(fan_out))
    if role is Role.INPUT:  # smaller with the width, as muP has it not: the paper's finding, by experiment
        return UnitScaling(lr=1.0 / math.sqrt(fan_out))
    return UnitScaling(lr=in_branch)


def residual_mult(depth: int) -> float:
    """Factor 1/sqrt(depth) on each of `depth` residual branches, and on the learning rates inside them.

    The library's residual_add goes further: it weights branch and stream so that their sum keeps scale one as well.
    """
    return 1.0 / math.sqrt(depth)
