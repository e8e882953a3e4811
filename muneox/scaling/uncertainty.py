"""Intervals and bands of posterior draws, and the noise of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from muneox.scaling.power_law import checked, fit_power_law
from muneox.scaling.prior import Array

LEVEL = 0.90


@dataclass(frozen=True)
class Interval:
    """The median of draws and the central interval that contains a share `level` of them."""

    value: float
    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def interval(draws: ArrayLike, level: float = LEVEL) -> Interval:
    """The median and central interval of draws [s]."""
    tail = (1 - level) / 2
    low, middle, high = np.quantile(np.asarray(draws, np.float64), [tail, 0.5, 1 - tail])
    return Interval(float(middle), float(low), float(high), level)


@dataclass(frozen=True)
class Band:
    """The predicted loss of a new run along x [m]: its median and central interval, each [m]."""

    name: str
    x: Array
    median: Array
    low: Array
    high: Array
    level: float

    def as_json(self) -> dict[str, Any]:
        lines = {key: getattr(self, key).tolist() for key in ("x", "median", "low", "high")}
        return {"name": self.name, "level": self.level} | lines


def band(name: str, x: ArrayLike, draws: Array, level: float = LEVEL, *, smooth: bool = True) -> Band:
    """The band of draws [s, m] at x [m].

    smooth: remove sampling noise from the quantiles, assuming that they are smooth in the index of x.
    """
    tail = (1 - level) / 2
    lines = np.asarray(np.quantile(draws, [0.5, tail, 1 - tail], axis=0), np.float64)
    if smooth:
        index = np.linspace(-1, 1, lines.shape[1])
        fit = np.polynomial.chebyshev.chebfit(index, lines.T, 8)
        lines = np.asarray(np.polynomial.chebyshev.chebval(index, fit), np.float64)
    middle, low, high = lines
    return Band(name, np.asarray(x, np.float64), middle, low, high, level)


@dataclass(frozen=True)
class Trace:
    """Fitted points for the picture: x, y and the fit at x, each [n]. tokens: [n], only for L(N, D)."""

    name: str
    x: Array
    y: Array
    fit: Array
    tokens: Array | None = None


def seed_variance(x: ArrayLike, y: ArrayLike) -> Array | None:
    """Relative noise variance of each run [n], with mean 1, if the scatter of seeds differs between sizes; else None.

    Bartlett's test at 5 % decides (Bartlett 1937): weights from chance differences make the intervals of the law's
    parameters too narrow (86 % instead of 90 %). The variance of each size is then shrunk towards the pooled one with
    the weight of four degrees of freedom, because three seeds determine a variance poorly.
    """
    size, loss = checked(x, y, least=1)
    sizes, where, count = np.unique(size, return_inverse=True, return_counts=True)
    if (count > 1).sum() < 3:
        return None
    log = np.log(loss)
    mean = np.bincount(where, log) / count
    squares = np.bincount(where, (log - mean[where]) ** 2)
    pooled = squares.sum() / (count - 1).sum()
    if pooled <= 0 or not _differ([log[where == i] for i in np.flatnonzero(count > 1)]):
        return None
    variance = (4 * pooled + squares) / (4 + count - 1)
    return np.asarray(variance[where] / variance[where].mean())


def _differ(groups: Sequence[Array]) -> bool:
    from scipy.stats import bartlett  # importing it takes a second, which a command's --help does not need

    with np.errstate(divide="ignore"):  # zero variance: seeds that agree exactly
        return bool(bartlett(*groups).pvalue < 0.05)


def noise_floor(x: ArrayLike, y: ArrayLike) -> tuple[float, str]:
    """Relative noise of one run and its source: repeats of a size, else the residuals of the fit."""
    size, loss = checked(x, y)
    _, where, count = np.unique(size, return_inverse=True, return_counts=True)
    if (freedom := int((count - 1).sum())) >= 2:
        log = np.log(loss)
        mean = np.bincount(where, log) / count
        return float(np.sqrt(((log - mean[where]) ** 2).sum() / freedom)), "repeated sizes"
    return fit_power_law(size, loss).rms, "residuals of the fit"
