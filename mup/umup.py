"""Unit-scaled muP (u-muP): a table of its own, in absolute sizes, with no base model.

Every tensor starts at scale one; forward factors and learning rates carry the width and the depth.
Source: Blake et al., u-muP: The Unit-Scaled Maximal Update Parametrization, arXiv:2407.17465, Table 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mup.rules import Role

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

    depth: number of residual branches (2 a transformer layer) where the parameter is inside one, else None; the
    branch itself is scaled by `residual_mult`. Raises ValueError for a size below 1.
    """
    if min(fan_in, fan_out, 1 if depth is None else depth) < 1:
        raise ValueError(f"sizes must be positive: fan_in {fan_in}, fan_out {fan_out}, depth {depth}")
    in_branch = 1.0 if depth is None else residual_mult(depth)
    if role is Role.HIDDEN:
        scale = 1.0 / math.sqrt(fan_in)
        return UnitScaling(forward=scale, backward=scale, lr=scale * in_branch)
    if role is Role.OUTPUT:  # the gradient keeps unit scale with another factor than the logits: Table 2, note
        return UnitScaling(forward=1.0 / fan_in, backward=1.0 / math.sqrt(fan_in))
    if role is Role.INPUT:  # the departure from muP that the paper argues for (Section 4.4)
        return UnitScaling(lr=1.0 / math.sqrt(fan_out))
    return UnitScaling(lr=in_branch)


def residual_mult(depth: int) -> float:
    """Factor 1/sqrt(depth) on each of `depth` residual branches, and on the learning rates inside them."""
    return 1.0 / math.sqrt(depth)
