"""L(N, D) = E + A N^-alpha + B D^-beta: loss against parameters and tokens (Hoffmann et al., arXiv:2203.15556, eq. 2).

As for L(N), alpha and beta are on a grid, and E, A and B are solved exactly. The weak prior of both exponents is
log-normal (see PRIOR). Published fits have 0.28 to 0.37 (Hoffmann et al.; Besiroglu et al., arXiv:2404.10102).

Real runs leave the surface far from the compute-optimal ratio of tokens to parameters, and such runs bend it where it
is used. So a forecast fits only the runs near the best loss at their compute (see near_best), and allows for a smooth
departure from the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron.errors import DataError
from muneox.scaling.compute import best_of_budgets, training_flops
from muneox.scaling.departure import departure, matern
from muneox.scaling.power_law import checked
from muneox.scaling.prior import EXPONENT, EXPONENT_SD, Array, Exponents, Prior
from muneox.scaling.separable import Design, Draws, best_exponents, residuals, sample_posterior

WINDOW = 0.02  # relative excess over the best loss at equal FLOPs, up to which runs are fitted
FEWEST = 12  # runs near the best; with fewer, the next ones are fitted too
STEP = 4.0  # factor between the windows of targets at different distances from the optimum
COLLINEAR = 0.999  # correlation of log N and log D from which they cannot be separated
PRIOR = Prior(tau=3e-3, exponent=0.25)
EXPONENTS = Exponents(low=(0.03,) * 2, high=(2.0,) * 2, cells=22, median=(EXPONENT,) * 2, log_sd=(EXPONENT_SD,) * 2)


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
    positions: Array  # [n, 2], log N and log D of the fitted runs
    centre: tuple[float, float]
    length: float
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
        """Draws of the loss of new runs at m positions, with departure and noise: [s, m]."""
        cross = matern(_positions(params, tokens), self.positions, self.length)
        return self.draws.observe(_design(params, tokens, self.centre), cross, np.random.default_rng(self.seed + 1))

    def excess(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        """Relative excess of the loss over the optimum of the surface at the same FLOPs: median [m]."""
        law = self.law(params, tokens)
        best = self.surface.optimal(training_flops(params, tokens)[..., None])
        return np.asarray(np.median(law / self.surface(*best).T - 1, axis=0))


def _checked(params: ArrayLike, tokens: ArrayLike, y: ArrayLike, least: int = 3) -> tuple[Array, Array, Array]:
    """The input as float64[n]. least: the fewest different sizes, and the fewest different tokens."""
    for name, values in (("tokens", tokens), ("size", params)):
        low, high = np.min(values, initial=np.inf), np.max(values, initial=0)
        if 0 < high <= 1.001 * low:
            raise DataError(f"all runs have the {name} {low:.4g}; L(N, D) needs runs that differ in it, or fit L(N)")
    n, loss = checked(params, y, least)
    d, _ = checked(tokens, y, least)
    if len(loss) < 6:
        raise DataError(f"{len(loss)} runs; L(N, D) has five parameters and needs at least 6")
    if _collinear(n, d):
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
    prior: Prior | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> SurfacePosterior:
    """Sample the posterior of the surface. params, tokens, y: [n].

    The departure from the law is a smooth function of log N and log D. prior: default PRIOR. Two different sizes or
    tokens are enough, since the prior determines the exponent. Raises DataError under the same conditions as
    fit_surface otherwise.
    """
    n, d, loss = _checked(params, tokens, y, least=2)
    prior, centre, positions = prior or PRIOR, (_centre(n), _centre(d)), _positions(n, d)
    kernel = departure(positions, prior.length)
    design = _design(n, d, centre)
    found = sample_posterior(design, loss, EXPONENTS, kernel=kernel, prior=prior, draws=draws, seed=seed)
    return SurfacePosterior(found, positions, centre, prior.length, seed)


def near_best(params: ArrayLike, tokens: ArrayLike, y: ArrayLike, window: float = WINDOW) -> NDArray[np.bool_]:
    """Mask [n] of the runs whose loss exceeds the best loss at equal FLOPs by at most `window`, relative.

    params, tokens, y: [n]. The best loss is interpolated between the best run of each budget (see compute.envelope). If
    these are fewer than FEWEST runs, or do not separate N from D, the window is widened.
    """
    n, d, loss = (np.asarray(values, np.float64) for values in (params, tokens, y))
    flops = training_flops(n, d)
    best = best_of_budgets(flops, loss)
    lowest = np.minimum.accumulate(np.log(loss[best]))
    excess = np.expm1(np.log(loss) - np.interp(np.log(flops), np.log(flops[best]), lowest))
    limits = np.sort(excess)
    for limit in (window, *limits[limits > window]):
        near = excess <= limit
        if near.sum() >= min(FEWEST, len(loss)) and not _collinear(n[near], d[near]):
            return np.asarray(near)
    return np.ones(len(loss), bool)


def window_of(
    params: ArrayLike,
    tokens: ArrayLike,
    y: ArrayLike,
    target_params: ArrayLike,
    target_tokens: ArrayLike,
    *,
    prior: Prior | None = None,
    window: float = WINDOW,
) -> Array:
    """The window of near_best for each target [m]: a target far from the optimum needs runs that are as far from it.

    params, tokens, y: [n]. target_params, target_tokens: [m]. The excess of a target is predicted with `window`, which
    is multiplied by STEP until it contains twice this excess.
    """
    if np.isinf(window):
        return np.full(np.shape(target_params), window)
    near = near_best(params, tokens, y, window)
    n, d, loss = (np.asarray(values, np.float64)[near] for values in (params, tokens, y))
    excess = sample_surface(n, d, loss, prior=prior, draws=500).excess(target_params, target_tokens)
    steps = np.ceil(np.log(np.maximum(2 * excess / window, 1)) / np.log(STEP))
    return np.asarray(window * STEP**steps)


def _collinear(params: Array, tokens: Array) -> bool:
    """Whether tokens grow as a power of the parameters. Where they fall, as at one budget, the terms are separate."""
    with np.errstate(invalid="ignore", divide="ignore"):  # equal values have no correlation
        return not np.corrcoef(np.log(params), np.log(tokens))[0, 1] <= COLLINEAR


def _positions(params: ArrayLike, tokens: ArrayLike) -> Array:
    return np.log(np.stack([np.atleast_1d(np.asarray(v, np.float64)) for v in (params, tokens)], -1))


def _centre(x: Array) -> float:
    return float(np.exp(np.log(x).mean()))


def _design(params: ArrayLike, tokens: ArrayLike, centre: tuple[float, float]) -> Design:
    log_n = np.log(np.atleast_1d(np.asarray(params, np.float64)) / centre[0])
    log_d = np.log(np.atleast_1d(np.asarray(tokens, np.float64)) / centre[1])

    def columns(theta: Array) -> Array:
        first, second = np.exp(-theta[:, :1] * log_n), np.exp(-theta[:, 1:] * log_d)
        return np.stack([np.ones_like(first), first, second], -1)

    return columns
