"""L(x) = a x^b + c with a, c >= 0 and b < 0: loss against size for a fixed recipe.

x is the number of parameters (all of them by default, which predicts best), non-embedding parameters, width or FLOPs.
The form and its use follow Yao et al., nanoLM (arXiv:2304.06875) and Mu-scaling. With x = N, the D-term of Hoffmann et
al. (arXiv:2203.15556, eq. 2) is part of c. All functions take arrays. The results do not depend on the unit of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megatron.errors import DataError
from muneox.scaling.departure import departure, matern
from muneox.scaling.prior import EXPONENT, EXPONENT_SD, Array, Exponents, Prior
from muneox.scaling.separable import Design, Draws, best_exponents, project, residuals, sample_posterior

EXPONENTS = Exponents(low=(0.01,), high=(4.0,), cells=72, median=(EXPONENT,), log_sd=(EXPONENT_SD,))


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = a x^b + c."""

    a: float
    b: float
    c: float

    def __call__(self, x: ArrayLike) -> Array:
        return self.a * np.asarray(x, np.float64) ** self.b + self.c


@dataclass(frozen=True)
class PowerLawFit:
    """A fitted law, its relative residuals (fit - y)/y [n], and their RMS with n - 3 degrees of freedom."""

    law: PowerLaw
    residuals: Array
    rms: float


def checked(x: ArrayLike, y: ArrayLike, least: int = 3) -> tuple[Array, Array]:
    """Return x and y as float64[n]. Raises DataError for input that cannot be fitted. least: the fewest sizes."""
    size, loss = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if size.shape != loss.shape:
        raise DataError(f"expected one loss per size, found {len(size)} sizes but {len(loss)} losses")
    if not np.isfinite(size).all() or (size <= 0).any():
        raise DataError(f"sizes must be positive and finite, found {size[~(np.isfinite(size) & (size > 0))][0]:g}")
    if not np.isfinite(loss).all():
        index = int(np.flatnonzero(~np.isfinite(loss))[0])
        raise DataError(f"the loss at size {size[index]:g} is {loss[index]:g}: that run diverged")
    if (loss <= 0).any():
        raise DataError(f"losses must be positive, found {loss[loss <= 0][0]:g}")
    if len(np.unique(size)) < least:
        raise DataError(f"{len(np.unique(size))} different sizes; a law with three parameters needs at least {least}")
    return size, loss


def fit_power_law(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> PowerLawFit:
    """Fit the law by least squares in relative residuals.

    The exponent is scanned, then refined; a and c are solved exactly. x: [n] > 0. y: [n] > 0. weights: [n], the inverse
    of the noise's relative variance. Raises DataError if the loss does not fall with x, or if the input is not usable.
    """
    size, loss = checked(x, y)
    weight = np.ones_like(loss) if weights is None else np.asarray(weights, np.float64)
    centre = _centre(size)
    design = _design(size / centre)
    theta = best_exponents(design, loss, weight, EXPONENTS, cells=160)
    (floor, height), left = residuals(design(theta[None])[0], loss, weight)
    if height <= 0:
        raise DataError(
            "the loss does not fall with size: no decreasing law agrees with these runs. "
            "Check that the recipe's learning rate and initialisation suit the larger runs."
        )
    exponent = -float(theta[0])
    law = PowerLaw(float(height * centre**-exponent), exponent, float(floor))
    rms = float(np.sqrt((left**2).sum() / max(len(loss) - 3, 1) / weight.mean()))
    return PowerLawFit(law, law(size) / loss - 1, rms)


def bootstrap_power_law(
    x: ArrayLike, y: ArrayLike, *, samples: int = 1000, groups: Sequence[object] | None = None, seed: int = 0
) -> Array:
    """Bayesian bootstrap (Rubin 1981) over runs: float64[samples, 3] of a, b, c.

    groups: [n], labels of points that are drawn together, such as the checkpoints of one run. All samples are fitted at
    once: one matrix product over a grid of exponents, then a parabola through the best three. Use it from about 20 runs
    on; with fewer, use sample_power_law.
    """
    size, loss = checked(x, y)
    rng, centre = np.random.default_rng(seed), _centre(size)
    labels = np.arange(len(loss)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    draws = rng.standard_exponential((samples, labels.max() + 1))
    weights = (draws / draws.mean(1, keepdims=True))[:, labels]
    best = fit_power_law(size, loss).law
    grid = np.log(-best.b) + np.linspace(-1.2, 1.2, 49)
    for _ in range(2):  # the second grid covers only the range of the samples
        _, rss = project(_design(size / centre)(np.exp(grid)[:, None]), loss, weights)
        exponent = _parabola(grid, rss)
        margin = grid[1] - grid[0]
        low, high = exponent.min() - margin, exponent.max() + margin
        grid = np.linspace(low, high, 49)
    floor, height = _solve_each(size / centre, loss, weights, np.exp(exponent))
    return np.stack([height * centre ** np.exp(exponent), -np.exp(exponent), floor], -1)


@dataclass(frozen=True)
class PowerLawPosterior:
    """Posterior draws [s] of a, b, c, the noise and the departure from the law, with their predictions."""

    draws: Draws
    x: Array
    centre: float
    length: float
    seed: int

    @property
    def b(self) -> Array:
        return -self.draws.theta[:, 0]

    @property
    def a(self) -> Array:
        return self.draws.coefficients[:, 1] * self.centre**-self.b

    @property
    def c(self) -> Array:
        return self.draws.coefficients[:, 0]

    def law(self, x: ArrayLike) -> Array:
        """Draws of the law at x [m]: [s, m]."""
        return self.draws.law(_design(np.atleast_1d(np.asarray(x, np.float64)) / self.centre))

    def observe(self, x: ArrayLike) -> Array:
        """Draws of one new run's loss at x [m], with departure and noise: [s, m]."""
        size = np.atleast_1d(np.asarray(x, np.float64))
        cross = matern(np.log(size)[:, None], np.log(self.x)[:, None], self.length)
        return self.draws.observe(_design(size / self.centre), cross, np.random.default_rng(self.seed + 1))


def sample_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    variance: ArrayLike | None = None,
    prior: Prior | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> PowerLawPosterior:
    """Sample the posterior of the law, from four sizes on.

    The priors are weak (see Exponents and Prior): -b is log-normal with median 0.33 (90 %: 0.14 to 0.75), which
    covers the exponents published for language models; a and c are only constrained to be positive. The departure from
    the law is a smooth curve in log x of unknown size. It makes a prediction's interval grow with the extrapolation.

    a, b and c have a true value only if the law is exact. Their intervals are then calibrated without the departure
    (tau = 0); with it, 90 % intervals cover 95 % of such ladders. variance: [n], relative to each other. Raises
    DataError under the same conditions as fit_power_law.
    """
    size, loss = checked(x, y)
    prior, centre = prior or Prior(), _centre(size)
    kernel = departure(np.log(size)[:, None], prior.length)
    relative = None if variance is None else np.asarray(variance, np.float64)
    found = sample_posterior(
        _design(size / centre), loss, EXPONENTS, kernel=kernel, prior=prior, variance=relative, draws=draws, seed=seed
    )
    return PowerLawPosterior(found, size, centre, prior.length, seed)


def _centre(x: Array) -> float:
    return float(np.exp(np.log(x).mean()))


def _design(ratio: Array) -> Design:
    """Map theta [g, 1] to the columns 1 and ratio^-theta: [g, n, 2]."""

    def columns(theta: Array) -> Array:
        power = np.exp(-theta * np.log(ratio))
        return np.stack([np.ones_like(power), power], -1)

    return columns


def _parabola(grid: Array, rss: Array) -> Array:
    """The minimum of each row of rss [b, g] over a uniform grid [g], interpolated between its points."""
    middle = np.clip(np.argmin(rss, 1), 1, len(grid) - 2)
    rows = np.arange(len(rss))
    left, centre, right = rss[rows, middle - 1], rss[rows, middle], rss[rows, middle + 1]
    bend = left - 2 * centre + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0)
    return np.asarray(grid[middle] + np.clip(shift, -1, 1) * (grid[1] - grid[0]))


def _solve_each(ratio: Array, y: Array, weights: Array, exponents: Array) -> tuple[Array, Array]:
    """c and a at the centre for each sample, given its exponent: [b] and [b]."""
    power = np.exp(-exponents[:, None] * np.log(ratio)) / y
    flat = np.broadcast_to(1 / y, power.shape)
    s00, s01, s11 = ((weights * p * q).sum(1) for p, q in ((flat, flat), (flat, power), (power, power)))
    t0, t1 = (weights * flat).sum(1), (weights * power).sum(1)
    floor = (s11 * t0 - s01 * t1) / (s00 * s11 - s01**2)
    floor = np.maximum(floor, 0)
    return floor, (t1 - floor * s01) / s11
