"""Plans the next run of a ladder from its cost and from how far it would shrink the forecast's interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megatron.errors import DataError
from muneox.scaling.power_law import checked, sample_power_law
from muneox.scaling.prior import Prior
from muneox.scaling.uncertainty import LEVEL, interval

OUTCOMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of the candidate's predicted loss to average over
AFFORDABLE = 0.35  # share of the target's cost; a costlier run is not worth it next to the target itself


@dataclass(frozen=True)
class Candidate:
    """A run that could be trained.

    cost: share of the target's cost. half_width: the expected relative half-width of the interval after this run.
    """

    x: float
    cost: float
    half_width: float
    shrink: float  # 1 - half width after / before


@dataclass(frozen=True)
class NextRunPlan:
    """The candidates for the next run.

    half_width: the current relative half-width. candidates: in order of size. best: the most informative affordable
    candidate, or None.
    """

    half_width: float
    candidates: tuple[Candidate, ...]
    best: Candidate | None


def plan_next(
    x: ArrayLike,
    y: ArrayLike,
    target: float,
    *,
    cost_exponent: float = 1.0,
    level: float = LEVEL,
    prior: Prior | None = None,
    draws: int = 1500,
) -> NextRunPlan:
    """Expected interval at `target` after one more run, for candidate sizes between the ladder and the target.

    The candidate's loss is unknown, so the half-width is averaged over quantiles of its prediction. cost_exponent: cost
    is proportional to x to this power (1: parameters at fixed tokens; 2: parameters with tokens in proportion, or
    width). Raises DataError if the target is not beyond the ladder.
    """
    size, loss = checked(x, y)
    if target <= size.max():
        raise DataError(f"target {target:g} is not beyond the largest run, {size.max():g}; choose a larger target")
    now = sample_power_law(size, loss, prior=prior, draws=4000)
    before = _relative_half_width(now.observe([target])[:, 0], level)
    sizes = np.unique(np.concatenate([[np.median(np.unique(size))], np.geomspace(size.max(), target, 7)[:-1]]))
    candidates = []
    for place in sizes:
        widths = []
        for outcome in np.quantile(now.observe([place])[:, 0], OUTCOMES):
            after = sample_power_law(np.append(size, place), np.append(loss, outcome), prior=prior, draws=draws)
            widths.append(_relative_half_width(after.observe([target])[:, 0], level))
        width = float(np.mean(widths))
        candidates.append(Candidate(float(place), float((place / target) ** cost_exponent), width, 1 - width / before))
    useful = [c for c in candidates if c.cost <= AFFORDABLE and c.shrink > 0.02]
    return NextRunPlan(before, tuple(candidates), max(useful, key=lambda c: c.shrink, default=None))


def _relative_half_width(draws: np.ndarray, level: float) -> float:
    found = interval(draws, level)
    return found.half_width / found.value
