"""L(N, D) = E + A N^-alpha + B D^-beta: loss against parameters and tokens (Hoffmann et al., arXiv:2203.15556, eq. 2).

As for L(N), alpha and beta are on a grid, and E, A and B are solved exactly. The weak prior of both exponents has
median 0.33 (90 %: 0.14 to 0.75). Published fits have 0.28 to 0.37 (Hoffmann et al.; Besiroglu et al.,
arXiv:2404.10102).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megatron.errors import DataError
from muneox.scaling.power_law import checked
from muneox.scaling.separable import (
    Array,
    Design,
    Draws,
    Exponents,
    NoisePrior,
    best_exponents,
    residuals,
    sample_posterior,
)

EXPONENTS = Exponents(low=(0.03,) * 2, high=(2.0,) * 2, cells=22, median=(0.33,) * 2, log_sd=(0.5,) * 2)


@dataclass(frozen=True)
class Surface:
    """L(N, D) = e + a N^-alpha + b D^-beta. The fields can be arrays of draws."""

    e: Array
    a: Array
    alpha: Array
    b: Array
    beta: Array

    def __call__(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        n, d = np.asarray(params, np.float64), np.asarray(tokens, np.float64)
        return np.asarray(self.e + self.a * n**-self.alpha + self.b * d**-self.beta)

    def optimal(self, flops: ArrayLike) -> tuple[Array, Array]:
        """Parameters and tokens that minimise the loss for a budget of C = 6 N D FLOPs (Hoffmann et al., eq. 4)."""
        budget = np.asarray(flops, np.float64) / 6
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        params = ratio * budget ** (self.beta / (self.alpha + self.beta))
        return params, budget / params


@dataclass(frozen=True)
class SurfacePosterior:
    """Posterior draws [s] of the surface, and their predictions."""

    draws: Draws
    centre: tuple[float, float]
    seed: int

    @property
    def surface(self) -> Surface:
        alpha, beta = self.draws.theta.T
        e, a, b = self.draws.coefficients.T
        return Surface(e, a * self.centre[0] ** alpha, alpha, b * self.centre[1] ** beta, beta)

    def law(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        """Draws of the surface at m positions: [s, m]."""
        return self.draws.law(_design(params, tokens, self.centre))

    def observe(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        """Draws of the loss of new runs at m positions: [s, m]."""
        return self.draws.observe(_design(params, tokens, self.centre), None, np.random.default_rng(self.seed + 1))


def _checked(params: ArrayLike, tokens: ArrayLike, y: ArrayLike) -> tuple[Array, Array, Array]:
    for name, values in (("tokens", tokens), ("size", params)):
        low, high = np.min(values, initial=np.inf), np.max(values, initial=0)
        if 0 < high <= 1.001 * low:
            raise DataError(f"all runs have the {name} {low:.4g}; L(N, D) needs runs that differ in it, or fit L(N)")
    n, loss = checked(params, y)
    d, _ = checked(tokens, y)
    if len(loss) < 6:
        raise DataError(f"{len(loss)} runs; L(N, D) has five parameters and needs at least 6")
    if abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.999:
        raise DataError("tokens are a power of parameters in these runs, so L(N, D) cannot separate them; fit L(N)")
    return n, d, loss


def fit_surface(params: ArrayLike, tokens: ArrayLike, y: ArrayLike) -> Surface:
    """Fit the surface by least squares in relative residuals.

    params, tokens, y: [n]. Raises DataError for input that cannot be fitted.
    """
    n, d, loss = _checked(params, tokens, y)
    centre = _centre(n), _centre(d)
    design, weights = _design(n, d, centre), np.ones_like(loss)
    theta = best_exponents(design, loss, weights, EXPONENTS, cells=32)
    (e, a, b), _ = residuals(design(theta[None])[0], loss, weights)
    alpha, beta = theta
    return Surface(e, a * centre[0] ** alpha, alpha, b * centre[1] ** beta, beta)


def sample_surface(
    params: ArrayLike,
    tokens: ArrayLike,
    y: ArrayLike,
    *,
    prior: NoisePrior | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> SurfacePosterior:
    """Sample the posterior of the surface. params, tokens, y: [n].

    With five parameters and many runs, the departure from the law appears in the residuals and counts as noise. Raises
    DataError under the same conditions as fit_surface.
    """
    n, d, loss = _checked(params, tokens, y)
    centre = _centre(n), _centre(d)
    found = sample_posterior(_design(n, d, centre), loss, EXPONENTS, prior=prior, draws=draws, seed=seed)
    return SurfacePosterior(found, centre, seed)


def _centre(x: Array) -> float:
    return float(np.exp(np.log(x).mean()))


def _design(params: ArrayLike, tokens: ArrayLike, centre: tuple[float, float]) -> Design:
    log_n = np.log(np.atleast_1d(np.asarray(params, np.float64)) / centre[0])
    log_d = np.log(np.atleast_1d(np.asarray(tokens, np.float64)) / centre[1])

    def columns(theta: Array) -> Array:
        first, second = np.exp(-theta[:, :1] * log_n), np.exp(-theta[:, 1:] * log_d)
        return np.stack([np.ones_like(first), first, second], -1)

    return columns
