"""Priors of the laws: exponents, the noise of one run, and the departure of real runs from a law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENT = 0.33  # median of the exponents' prior; published fits of L(N, D) have 0.28 to 0.37
EXPONENT_SD = 0.5  # of the logarithm of an exponent: 90 % of the prior within a factor 2.3 of the median
SPREAD = math.exp(1.645 * EXPONENT_SD)  # from the median of an exponent to the ends of its 90 % interval


@dataclass(frozen=True)
class Prior:
    """Prior of the exponents, and of the residuals relative to the loss.

    exponent: median of every exponent of the law; None for the medians of `Exponents`. sigma: scale of one run's noise,
    scaled inverse chi-squared with one degree of freedom. tau: scale of the smooth departure of real ladders from the
    law, half-Cauchy; 0 assumes an exact law. length: correlation length of the departure (Matern 3/2) in natural
    logarithms of x, by default a decade. The defaults predict published runs best (benchmarks/published_runs.py).
    """

    sigma: float = 2e-3
    tau: float = 2e-3
    length: float = float(np.log(10.0))
    exponent: float | None = None

    def __str__(self) -> str:
        median = EXPONENT if self.exponent is None else self.exponent
        return (
            f"exponents log-normal with median {median:.3g} (90 % in {median / SPREAD:.2g} to {median * SPREAD:.2g}); "
            "coefficients flat over positive values; noise of one run scaled inverse chi-squared with scale "
            f"{self.sigma:.2%}; predictions allow for a smooth departure from the law, half-Cauchy with scale "
            f"{self.tau:.2%}"
        )


@dataclass(frozen=True)
class Exponents:
    """The range, log-normal prior and number of grid cells of each exponent. The tuples have length q."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    cells: int
    median: tuple[float, ...]
    log_sd: tuple[float, ...]

    def around(self, median: float | None) -> Exponents:
        """The same exponents with another median for all; unchanged for None."""
        return self if median is None else replace(self, median=(median,) * len(self.median))

    def log_prior(self, theta: Array) -> Array:
        squares = ((np.log(theta) - np.log(self.median)) / self.log_sd) ** 2
        return np.asarray(-0.5 * squares.sum(-1))

    def grid(self, cells: int) -> Array:
        """A grid that is uniform in the logarithms: [cells ** q, q]."""
        return mesh([np.geomspace(*ends, cells) for ends in zip(self.low, self.high)])


def mesh(axes: Sequence[Array]) -> Array:
    """All combinations of the values of q axes: [g, q]."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], -1)
