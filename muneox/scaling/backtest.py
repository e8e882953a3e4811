"""What the forecast would have been without the largest runs, and what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megatron.errors import DataError
from muneox.scaling.power_law import checked, sample_power_law
from muneox.scaling.separable import NoisePrior
from muneox.scaling.uncertainty import LEVEL, Interval, interval

FEWEST_SIZES = 4  # that a backtest is fitted to
MOST_SPLITS = 5


@dataclass(frozen=True)
class HeldOutRun:
    """One held-out run. sizes: how many were fitted; extrapolation: x over the largest fitted x."""

    sizes: int
    x: float
    actual: float
    predicted: Interval
    extrapolation: float

    @property
    def error(self) -> float:
        """Relative: predicted / actual - 1."""
        return self.predicted.value / self.actual - 1

    @property
    def inside(self) -> bool:
        return self.actual in self.predicted


def backtest(
    x: ArrayLike, y: ArrayLike, *, level: float = LEVEL, prior: NoisePrior | None = None, draws: int = 2000
) -> list[HeldOutRun]:
    """Refits without the 1, 2, ... largest sizes, at least four being left, and predicts those. Empty for four sizes.

    x, y: [n]. At most five splits, evenly chosen.
    """
    size, loss = checked(x, y)
    sizes = np.unique(size)
    counts = np.arange(FEWEST_SIZES, len(sizes))
    if len(counts) > MOST_SPLITS:
        counts = np.unique(np.linspace(FEWEST_SIZES, len(sizes) - 1, MOST_SPLITS).round().astype(int))
    held: list[HeldOutRun] = []
    for count in counts:
        fitted = size <= sizes[count - 1]
        held += predict_held_out(size, loss, fitted, level=level, prior=prior, draws=draws)
    return held


def predict_held_out(
    x: ArrayLike,
    y: ArrayLike,
    fitted: ArrayLike,
    *,
    level: float = LEVEL,
    prior: NoisePrior | None = None,
    draws: int = 4000,
) -> list[HeldOutRun]:
    """Fits the runs of the mask `fitted` [n] and predicts the others; nothing if the fitted ones follow no law."""
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


def mean_error(held: Sequence[HeldOutRun]) -> float:
    """Mean absolute relative error; NaN for none."""
    return float(np.mean([abs(h.error) for h in held])) if held else float("nan")


def coverage(held: Sequence[HeldOutRun]) -> float:
    """Share of held-out runs inside their interval; NaN for none."""
    return float(np.mean([h.inside for h in held])) if held else float("nan")
