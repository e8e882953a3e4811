"""Backtests: predict the largest runs of a ladder from the smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megatron.errors import DataError
from muneox.scaling.power_law import checked, sample_power_law
from muneox.scaling.prior import Prior
from muneox.scaling.uncertainty import LEVEL, Interval, interval

FEWEST_SIZES = 4  # the fewest sizes that a backtest fits
MOST_SPLITS = 5


@dataclass(frozen=True)
class HeldOutRun:
    """One held-out run. sizes: the number of fitted sizes. extrapolation: x divided by the largest fitted x."""

    sizes: int
    x: float
    actual: float
    predicted: Interval
    extrapolation: float

    @property
    def error(self) -> float:
        """Relative error: predicted / actual - 1."""
        return self.predicted.value / self.actual - 1

    @property
    def inside(self) -> bool:
        return self.actual in self.predicted


def backtest(
    x: ArrayLike, y: ArrayLike, *, level: float = LEVEL, prior: Prior | None = None, draws: int = 2000
) -> list[HeldOutRun]:
    """Predict the 1, 2, ... largest sizes from the others, at least four.

    x, y: [n]. Uses at most five splits, evenly spaced. Returns an empty list for four sizes.
    """
    size, loss = checked(x, y)
    sizes = np.unique(size)
    counts = np.arange(FEWEST_SIZES, len(sizes))
    if len(counts) > MOST_SPLITS:
        counts = np.unique(np.linspace(FEWEST_SIZES, len(sizes) - 1, MOST_SPLITS).round().astype(int))
    runs: list[HeldOutRun] = []
    for count in counts:
        fitted = size <= sizes[count - 1]
        runs += predict_held_out(size, loss, fitted, level=level, prior=prior, draws=draws)
    return runs


def predict_held_out(
    x: ArrayLike,
    y: ArrayLike,
    fitted: ArrayLike,
    *,
    level: float = LEVEL,
    prior: Prior | None = None,
    draws: int = 4000,
) -> list[HeldOutRun]:
    """Fit the runs that the mask `fitted` [n] selects and predict the others.

    Returns an empty list if the selected runs cannot be fitted.
    """
    size, loss, mask = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(fitted, bool)
    try:
        posterior = sample_power_law(size[mask], loss[mask], prior=prior, draws=draws)
    except DataError:
        return []
    samples = posterior.observe(size[~mask])
    largest, count = size[mask].max(), len(np.unique(size[mask]))
    return [
        HeldOutRun(count, float(a), float(b), interval(s, level), float(a / largest))
        for a, b, s in zip(size[~mask], loss[~mask], samples.T)
    ]


def mean_error(runs: Sequence[HeldOutRun]) -> float:
    """Mean absolute relative error; NaN for an empty sequence."""
    return float(np.mean([abs(run.error) for run in runs])) if runs else float("nan")


def coverage(runs: Sequence[HeldOutRun]) -> float:
    """Share of held-out runs inside their interval; NaN for an empty sequence."""
    return float(np.mean([run.inside for run in runs])) if runs else float("nan")
