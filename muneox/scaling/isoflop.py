"""Compute-optimal sizes from isoFLOP sweeps: a parabola per budget (Hoffmann et al., arXiv:2203.15556, section 3.2).

At one budget C = 6 N D, the log loss is a parabola in log N near its minimum, the optimal N*(C). The minima of several
budgets lie on N*(C) = k C^p. Hoffmann et al. find p = 0.49, Kaplan et al. (arXiv:2001.08361) 0.73, and the Llama 3
report (arXiv:2407.21783, section 3.2.1) 0.47, as 1 - 0.53 of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron.errors import DataError
from muneox.scaling.compute import training_flops
from muneox.scaling.power_law import checked
from muneox.scaling.prior import Array

SAME_BUDGET = 1.25  # runs whose FLOPs differ by less than this factor from the next one's have one budget
LONGEST = 1.6  # factor between the smallest and the largest FLOPs of one budget
NEAR = 0.05  # excess over the lowest loss of a budget up to which runs are on its parabola
FEWEST = 5  # runs of a parabola, where the budget has as many; at least 3
SKEW = 0.1  # normal prior scale of the skew; on L(N, D) of Hoffmann et al. (eq. 2) it is beta - alpha at the optimum
NOISE = 2e-3  # prior scale of one run's relative noise, scaled inverse chi-squared with one degree of freedom
EXPONENT, EXPONENT_SD = 0.5, 0.15  # normal prior of p
SCATTER = 0.01  # half-Cauchy scale of the scatter of log N* around the line


@dataclass(frozen=True)
class Budget:
    """The best run of each size at one budget, in order of N.

    params, loss: [n]. near: mask [n] of those on the parabola. runs: number of all runs, from which they are the best.
    """

    flops: float
    params: Array
    loss: Array
    near: NDArray[np.bool_]
    runs: int

    @property
    def centre(self) -> float:
        return float(np.log(self.params[self.near]).mean())

    def design(self, skew: float) -> Array:
        """Columns 1, u and u^2 + skew u^3 / 3 of the runs near the lowest loss, with u = log N - centre: [k, 3]."""
        u = np.log(self.params[self.near]) - self.centre
        return np.stack([np.ones_like(u), u, u**2 + skew * u**3 / 3], -1)

    def fit(self, skew: float) -> tuple[Array, float]:
        """Coefficients (a, b, c) of the log loss, and the sum of squared residuals."""
        design, target = self.design(skew), np.log(self.loss[self.near])
        coefficients = np.asarray(np.linalg.lstsq(design, target, rcond=None)[0], np.float64)
        return coefficients, float(((design @ coefficients - target) ** 2).sum())

    @property
    def problem(self) -> str:
        """Why the parabola has no usable minimum, or an empty string."""
        (_, slope, bend), _ = self.fit(0.0)
        if bend <= 0:
            return "the losses do not bend upwards"
        place = np.exp(self.centre - slope / (2 * bend))
        if not self.params.min() < place < self.params.max():
            side = "smaller" if place <= self.params.min() else "larger"
            return f"the lowest loss is at the edge; add {side} models"
        return ""

    def __call__(self, params: ArrayLike) -> Array:
        """The parabola without skew, as a loss."""
        u = np.log(np.asarray(params, np.float64)) - self.centre
        return np.asarray(np.exp(self.fit(0.0)[0] @ np.stack([np.ones_like(u), u, u**2])))


@dataclass(frozen=True)
class Optima:
    """Draws of the optimum: exponent p [s], log k at `middle` [s], and N* and loss of each budget, [s, m]."""

    flops: Array  # [m], of the budgets
    middle: float  # geometric mean of the FLOPs
    exponent: Array
    level: Array
    params: Array
    loss: Array
    noise: Array

    def optimal_params(self, flops: ArrayLike) -> Array:
        """Draws of N* at the FLOPs [k]: [s, k]."""
        reach = np.log(np.atleast_1d(np.asarray(flops, np.float64)) / self.middle)
        return np.asarray(np.exp(self.level[:, None] + self.exponent[:, None] * reach))


def split_budgets(params: ArrayLike, tokens: ArrayLike, y: ArrayLike) -> list[Budget]:
    """The budgets of an isoFLOP sweep, in order of FLOPs, each with at least three sizes. params, tokens, y: [n].

    Runs of one size at one budget, such as learning rates or batch sizes, are reduced to the best one. Raises DataError
    if the FLOPs do not form budgets, or if no budget has three sizes.
    """
    n, loss = checked(params, y)
    flops = training_flops(n, tokens)
    order = np.argsort(flops)
    n, loss, flops = n[order], loss[order], flops[order]
    starts = np.flatnonzero(np.diff(np.log(flops), prepend=-np.inf) > np.log(SAME_BUDGET))
    found = []
    for members in np.split(np.arange(len(n)), starts[1:]):
        if flops[members[-1]] > LONGEST * flops[members[0]]:
            raise DataError(
                f"the runs from {flops[members[0]]:.3g} to {flops[members[-1]]:.3g} FLOPs do not form budgets: an "
                "isoFLOP sweep trains several sizes with about equal FLOPs; use --law surface for other runs"
            )
        sizes = np.unique(n[members])
        if len(sizes) >= 3:
            best = np.array([loss[members][n[members] == size].min() for size in sizes])
            found.append(_budget(float(np.exp(np.log(flops[members]).mean())), sizes, best, len(members)))
    if not found:
        raise DataError("no budget has three sizes: an isoFLOP sweep trains several sizes with about equal FLOPs")
    return found


def _budget(flops: float, params: Array, loss: Array, runs: int) -> Budget:
    lowest = int(np.argmin(loss))
    # The nearest runs in log N, so that the parabola has runs on both sides of the minimum.
    distance = np.abs(np.log(params / params[lowest]))
    near = loss <= (1 + NEAR) * loss[lowest]
    near[np.argsort(distance, kind="stable")[:FEWEST]] = True
    return Budget(flops, params, loss, near, runs)


def sample_optima(budgets: list[Budget], *, draws: int = 4000, seed: int = 0) -> Optima:
    """Sample the minima of the parabolas and the line log N* = log k + p log C through them.

    The noise of a run and the skew are common to all budgets. With one budget, p has only its prior. Raises DataError
    if no budget has a minimum inside its sizes.
    """
    usable = [budget for budget in budgets if not budget.problem]
    if not usable:
        found = "; ".join(f"{b.flops:.3g} FLOPs: {b.problem}" for b in budgets)
        raise DataError(f"no budget has its lowest loss inside its sizes: {found}")
    rng = np.random.default_rng(seed)
    # Marginal over the noise: total ** (-freedom / 2), times the coefficients' determinants.
    freedom = 1 + sum(int(b.near.sum()) - 3 for b in usable)
    skews = np.linspace(-3 * SKEW, 3 * SKEW, 25)
    totals = np.array([NOISE**2 + sum(b.fit(skew)[1] for b in usable) for skew in skews])
    grams = [sum(np.linalg.slogdet(b.design(skew).T @ b.design(skew))[1] for b in usable) for skew in skews]
    density = -freedom / 2 * np.log(totals) - 0.5 * np.array(grams) - 0.5 * (skews / SKEW) ** 2
    mass = np.exp(density - density.max())
    cell = rng.choice(len(skews), draws, p=mass / mass.sum())
    noise = np.sqrt(totals[cell] / rng.chisquare(freedom, draws))
    minima = [_minima(budget, skews, cell, noise, rng) for budget in usable]
    places, losses = (np.stack(part, -1) for part in zip(*minima))
    flops = np.array([b.flops for b in usable])
    middle = float(np.exp(np.log(flops).mean()))
    level, exponent = _line(np.log(flops / middle), places.mean(0), np.cov(places.T), draws, rng)
    return Optima(flops, middle, exponent, level, np.exp(places), np.exp(losses), noise)


def _minima(
    budget: Budget, skews: Array, cell: NDArray[np.int64], noise: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draws [s] of log N* and of the log loss there. A draw without a minimum within twice the sizes is replaced."""
    fits = np.array([budget.fit(skew)[0] for skew in skews])
    designs = [budget.design(skew) for skew in skews]
    roots = np.array([np.linalg.cholesky(np.linalg.inv(design.T @ design)) for design in designs])
    low, high = np.log(budget.params.min() / 2), np.log(budget.params.max() * 2)
    place, value = rng.uniform(low, high, len(noise)), np.full(len(noise), np.log(budget.loss.min()))
    left = np.arange(len(noise))
    for _ in range(50):
        step = np.einsum("sij,sj->si", roots[cell[left]], rng.standard_normal((len(left), 3)))
        a, b, c = (fits[cell[left]] + noise[left, None] * step).T
        skew = skews[cell[left]]
        with np.errstate(divide="ignore", invalid="ignore"):
            # The root of b + c (2 u + skew u^2) next to the vertex -b / 2c, in a form that allows a skew of zero.
            u = -b / c / (1 + np.sqrt(1 - skew * b / c))
        good = (c > 0) & (low < u + budget.centre) & (u + budget.centre < high)  # False for NaN
        place[left[good]] = u[good] + budget.centre
        value[left[good]] = (a + b * u + c * (u**2 + skew * u**3 / 3))[good]
        left = left[~good]
    return place, value


def _line(x: Array, y: Array, covariance: Array, draws: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws [s] of level and slope of y = level + slope x, with an unknown scatter. x, y: [m]. covariance: [m, m]."""
    scatter = np.geomspace(SCATTER / 30, SCATTER * 30, 60)
    prior = np.diag([0.0, EXPONENT_SD**-2])
    columns = np.stack([np.ones_like(x), x], -1)
    means, roots, density = [], [], []
    for s in scatter:
        total = np.atleast_2d(covariance) + s**2 * np.eye(len(x))
        weight = np.linalg.inv(total)
        precision = columns.T @ weight @ columns + prior
        mean = np.linalg.solve(precision, columns.T @ weight @ y + prior @ [0, EXPONENT])
        left = y - columns @ mean
        square = left @ weight @ left + ((mean[1] - EXPONENT) / EXPONENT_SD) ** 2
        likelihood = -0.5 * (np.linalg.slogdet(total)[1] + np.linalg.slogdet(precision)[1] + square)
        density.append(likelihood + np.log(s) - np.log1p((s / SCATTER) ** 2))  # half-Cauchy, per log s
        means.append(mean)
        roots.append(np.linalg.cholesky(np.linalg.inv(precision)))
    mass = np.exp(np.array(density) - max(density))
    cell = rng.choice(len(scatter), draws, p=mass / mass.sum())
    found = np.array(means)[cell] + np.einsum("sij,sj->si", np.array(roots)[cell], rng.standard_normal((draws, 2)))
    return found[:, 0], found[:, 1]
