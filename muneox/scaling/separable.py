"""Exact least squares and posterior sampling for laws that are linear once their exponents are fixed.

A law y(z) = sum_k coefficient_k * column_k(z; exponents) with coefficients >= 0 is fitted in relative residuals,
(y - fit)/y. For fixed exponents the coefficients are solved exactly (variable projection: Golub and Pereyra 1973). Only
one or two exponents remain to be searched, without starting values and without local minima.

The posterior is evaluated on a grid of the exponents, the noise sigma and the size tau of a smooth departure from the
law. The grid is narrowed until it covers only the mass. Within a cell the posterior is Gaussian and integrated exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from megatron.errors import DataError
from muneox.scaling.prior import Array, Exponents, Prior, mesh

# theta float64[g, q] -> columns float64[g, n, k]
Design = Callable[[Array], Array]

NEGLIGIBLE = 1e-5  # share of the posterior's mass on an axis that narrowing the grid ignores
# The grid is narrowed to a tempered posterior first: a coarse grid can miss a sharp mode and keep a false one.
TEMPERATURES = (100.0, 10.0, 1.0)
COLLINEAR = 1e-13  # determinant of the columns' correlations; a smaller one is rounding error


@dataclass(frozen=True)
class Draws:
    """s draws of the posterior: theta [s, q], coefficients [s, k], and relative sigma [s] and tau [s]."""

    theta: Array
    coefficients: Array
    sigma: Array
    tau: Array
    _basis: Array  # [n, n] eigenvectors of the whitened covariance of the departure
    _variance: Array  # [s, n] variances along them
    _residual: Array  # [s, n] residuals along them

    def __len__(self) -> int:
        return len(self.sigma)

    def law(self, design: Design) -> Array:
        """The law at m new positions: [s, m]. design(theta): [s, m, k]."""
        return np.asarray(np.einsum("smk,sk->sm", design(self.theta), self.coefficients))

    def observe(self, design: Design, kernel: Array | None, rng: np.random.Generator) -> Array:
        """The loss of one new run at m positions, with departure and noise: [s, m].

        kernel: [m, n], correlations of the departure between the new positions and the data.
        """
        law = self.law(design)
        departure, spread = np.zeros_like(law), self.sigma[:, None] ** 2
        if kernel is not None and self.tau.any():
            cross, tau2 = kernel @ self._basis, self.tau[:, None] ** 2
            departure = tau2 * (self._residual / self._variance) @ cross.T
            spread = spread + tau2 * np.maximum(1 - tau2 * (1 / self._variance) @ (cross**2).T, 0)
        return law * (1 + departure + np.sqrt(spread) * stratified_normal(rng, law.shape))


def stratified_normal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Standard normal draws [s, k] from a Latin hypercube: each column has one draw in each s-quantile.

    Quantiles of quantities computed from them vary less between seeds.
    """
    ranks = rng.permuted(np.tile(np.arange(shape[0]), (shape[1], 1)), axis=1).T
    return np.asarray(ndtri((ranks + rng.random(shape)) / shape[0]))


def project(columns: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Best coefficients >= 0 and the weighted sum of squared relative residuals, for each theta (and sample).

    columns: [g, n, k]. y: [n]. weights: [n] or [b, n]. Returns [g, k] and [g], or [b, g, k] and [b, g]. Every subset of
    columns is solved (k <= 3) and the best feasible solution is kept. This is exact; clipping at zero is not.
    """
    size = columns.shape[-1]
    gram, moment, total = _moments(columns / y[:, None], np.ones_like(y), np.atleast_2d(weights))
    best = np.broadcast_to(total[:, None], moment.shape[:-1]).copy()
    coefficients = np.zeros_like(moment)
    for count in range(1, size + 1):
        for chosen in combinations(range(size), count):
            index = np.array(chosen)
            solved = _solve(gram[..., index[:, None], index], moment[..., index])
            left = total[:, None] - (solved * moment[..., index]).sum(-1)
            better = (solved >= 0).all(-1) & (left < best)
            best = np.where(better, left, best)
            full = np.zeros_like(moment)
            full[..., index] = solved
            coefficients = np.where(better[..., None], full, coefficients)
    best = np.maximum(best, 0)
    return (coefficients, best) if np.ndim(weights) == 2 else (coefficients[0], best[0])


def best_exponents(design: Design, y: Array, weights: Array, exponents: Exponents, cells: int = 0) -> Array:
    """The least-squares exponents [q], scanned on a grid and refined by Gauss-Newton on the projected residuals."""
    from scipy.optimize import least_squares  # importing it takes half a second, which a command's --help does not need

    grid = exponents.grid(cells or exponents.cells)
    start = np.log(grid[np.argmin(project(design(grid), y, weights)[1])])
    low, high = np.log(exponents.low), np.log(exponents.high)
    found = least_squares(
        lambda t: residuals(design(np.exp(t)[None])[0], y, weights)[1],
        np.clip(start, low + 1e-9, high - 1e-9),
        bounds=(low, high),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        x_scale=0.1,
    )
    return np.asarray(np.exp(found.x))


def residuals(columns: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Coefficients >= 0 [k] and weighted relative residuals [n] for one theta. columns: [n, k].

    Unlike `project`, it does not form moments, which lose digits.
    """
    root = np.sqrt(weights)
    scaled = columns * (root / y)[:, None]
    norm = np.linalg.norm(scaled, axis=0)
    norm[norm == 0] = 1
    solution, *_ = np.linalg.lstsq(scaled / norm, root, rcond=None)
    if (solution < 0).any():
        from scipy.optimize import nnls

        solution = nnls(scaled / norm, root)[0]
    return solution / norm, scaled / norm @ solution - root


def sample_posterior(
    design: Design,
    y: Array,
    exponents: Exponents,
    *,
    kernel: Array | None = None,
    prior: Prior | None = None,
    variance: Array | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> Draws:
    """Sample the posterior of a law with coefficients > 0.

    y: [n], losses > 0. kernel: [n, n], correlations of the departure from the law; None for an exact law. variance:
    [n], noise variances relative to each other. Given the exponents, the coefficients have Jeffreys' prior. Raises
    DataError if no decreasing law agrees with the data, or if the data do not separate the terms of the law.
    """
    prior, rng, n = prior or Prior(), np.random.default_rng(seed), len(y)
    scale = np.ones(n) if variance is None else np.asarray(variance, np.float64)
    if kernel is None or prior.tau == 0:
        values, basis = np.zeros(n), np.eye(n) / np.sqrt(scale)[:, None]
    else:
        values, vectors = np.linalg.eigh(kernel / np.sqrt(np.outer(scale, scale)))
        values, basis = np.maximum(values, 0), vectors / np.sqrt(scale)[:, None]
    exponents = exponents.around(prior.exponent)
    centre = best_exponents(design, y, 1 / scale, exponents)
    # Relative to the fit, not to y: relative to y, a law of zero with a smooth departure of 1 would explain the noise.
    level = design(centre[None])[0] @ residuals(design(centre[None])[0], y, 1 / scale)[0]
    problem = _Problem(design, level, y / level, exponents, prior, values, basis)
    grid = _Grid.start(centre, exponents, prior, exact=not values.any())
    for temperature in TEMPERATURES:
        table = grid.evaluate(problem)
        grid = grid.narrowed(table, temperature)
    table = grid.evaluate(problem)
    return _draw(grid, table, problem, draws, rng)


@dataclass(frozen=True)
class _Problem:
    """The data and prior of one fit.

    ratio: [n], y divided by its level [n]. values: [n], variances of the departure along the columns of `basis` [n, n].
    """

    design: Design
    level: Array
    ratio: Array
    exponents: Exponents
    prior: Prior
    values: Array
    basis: Array


@dataclass(frozen=True)
class _Table:
    """Log posterior [h, g] over noise cells and exponents, and the solution in each cell."""

    log_density: Array
    coefficients: Array  # [h, g, k]
    gram: Array  # [h, g, k, k]


@dataclass(frozen=True)
class _Grid:
    sigma: Array
    tau: Array
    axes: tuple[Array, ...]  # of the exponents

    @classmethod
    def start(cls, centre: Array, exponents: Exponents, prior: Prior, exact: bool) -> _Grid:
        """A grid that is fine near the least-squares exponents, for many runs, and coarse far away, for few runs."""
        steps = np.linspace(-1, 1, exponents.cells)
        bent = np.abs(np.sinh(8 * steps) / np.sinh(8))
        axes = []
        for middle, low, high in zip(np.log(centre), np.log(exponents.low), np.log(exponents.high)):
            # A centre at an end of the range would leave no cells on one side.
            middle = np.clip(middle, low + 0.02 * (high - low), high - 0.02 * (high - low))
            axes.append(np.exp(middle + bent * np.where(steps < 0, low - middle, high - middle)))
        tau = np.zeros(1) if exact else np.geomspace(prior.tau / 10, max(50 * prior.tau, 0.1), 8)
        return cls(np.geomspace(prior.sigma / 10, 0.3, 14), tau, tuple(axes))

    @property
    def log_cell(self) -> Array:
        """Logarithm of each cell's volume in the logarithms of the exponents: [g]."""
        widths = [np.log(np.gradient(np.log(axis))) for axis in self.axes]
        return np.asarray(mesh(widths).sum(-1))

    @property
    def theta(self) -> Array:
        return mesh(self.axes)

    @property
    def noise(self) -> tuple[Array, Array]:
        sigma, tau = mesh([self.sigma, self.tau]).T
        return sigma, tau

    def evaluate(self, problem: _Problem) -> _Table:
        sigma, tau = self.noise
        prior, exponents, basis = problem.prior, problem.exponents, problem.basis
        weights = 1 / (sigma[:, None] ** 2 + tau[:, None] ** 2 * problem.values)
        relative = problem.design(self.theta) / problem.level[:, None]
        columns = np.einsum("nj,gnk->gjk", basis, relative, optimize=True)
        gram, moment, total = _moments(columns, basis.T @ problem.ratio, weights)
        coefficients = _solve(gram, moment)
        rss = np.maximum(total[:, None] - (coefficients * moment).sum(-1), 0)
        plain, _ = _log_determinant(np.einsum("gnk,gnl->gkl", columns, columns, optimize=True))
        weighted, collinear = _log_determinant(gram)
        density = -np.log(sigma) - 0.5 * (prior.sigma / sigma) ** 2 + 0.5 * np.log(weights).sum(1)
        if tau.any():
            density = density + np.log(tau) - np.log1p((tau / prior.tau) ** 2)
        integral = 0.5 * (plain - weighted - rss)
        log_prior = exponents.log_prior(self.theta) + self.log_cell
        # If columns are collinear, the data do not determine the coefficients and Jeffreys' prior is improper.
        log_density = np.where(collinear, -np.inf, density[:, None] + log_prior + integral)
        if np.isneginf(log_density).all():
            raise DataError("the terms of the law vary together in these runs and cannot be separated; add other sizes")
        return _Table(log_density, coefficients, gram)

    def narrowed(self, table: _Table, temperature: float) -> _Grid:
        """A grid with as many cells over the part of each axis that holds the mass, plus one cell on each side."""
        mass = np.exp((table.log_density - table.log_density.max()) / temperature)
        mass = mass.reshape(len(self.sigma), len(self.tau), *map(len, self.axes))
        sigma, tau, *axes = (self._zoom(axis, mass, i) for i, axis in enumerate((self.sigma, self.tau, *self.axes)))
        return _Grid(sigma, tau, tuple(axes))

    @staticmethod
    def _zoom(axis: Array, mass: Array, index: int) -> Array:
        if len(axis) == 1:
            return axis
        marginal = mass.sum(tuple(i for i in range(mass.ndim) if i != index))
        kept = np.flatnonzero(marginal > NEGLIGIBLE * marginal.sum())
        low, high = max(kept[0] - 1, 0), min(kept[-1] + 1, len(axis) - 1)
        return np.geomspace(axis[low], axis[high], len(axis))


def _draw(grid: _Grid, table: _Table, problem: _Problem, draws: int, rng: np.random.Generator) -> Draws:
    sigma, tau = grid.noise
    mass = np.exp(table.log_density - table.log_density.max()).ravel()
    cumulative = np.cumsum(mass) / mass.sum()
    kept: list[tuple[Array, Array, Array]] = []
    count = tried = 0
    while count < draws and tried < 40 * draws:
        places = rng.permutation((np.arange(2 * draws) + rng.random()) / (2 * draws))
        cell = np.minimum(np.searchsorted(cumulative, places), mass.size - 1)
        noise, theta = np.divmod(cell, len(grid.theta))
        factor = _root_of_inverse(table.gram[noise, theta])
        step = np.einsum("sij,sj->si", factor, stratified_normal(rng, (len(cell), factor.shape[-1])))
        coefficients = table.coefficients[noise, theta] + step
        good = (coefficients > 0).all(-1)
        kept.append((noise[good], theta[good], coefficients[good]))
        count, tried = count + int(good.sum()), tried + len(cell)
    if count < draws // 4:
        raise DataError("the loss does not fall as the law requires: no decreasing law agrees with these runs")
    noise, index, coefficients = (np.concatenate(part)[:draws] for part in zip(*kept))
    theta_value = grid.theta[index]
    fit = np.einsum("snk,sk->sn", problem.design(theta_value), coefficients) / problem.level
    variance = sigma[noise][:, None] ** 2 + tau[noise][:, None] ** 2 * problem.values
    residual = (problem.ratio - fit) @ problem.basis
    return Draws(theta_value, coefficients, sigma[noise], tau[noise], problem.basis, variance, residual)


def _moments(columns: Array, target: Array, weights: Array) -> tuple[Array, Array, Array]:
    """X'WX [b, g, k, k], X'Wt [b, g, k] and t'Wt [b] for all weights [b, n] in one matrix product."""
    size = columns.shape[-1]
    pairs = [(i, j) for i in range(size) for j in range(i, size)]
    products = [columns[..., i] * columns[..., j] for i, j in pairs] + [columns[..., i] * target for i in range(size)]
    stacked = np.stack(products)  # [q, g, n]
    sums = (stacked.reshape(-1, stacked.shape[-1]) @ weights.T).reshape(*stacked.shape[:2], -1)
    sums = np.moveaxis(sums, -1, 0)  # [b, q, g]
    gram = np.empty((len(weights), columns.shape[0], size, size))
    for position, (i, j) in enumerate(pairs):
        gram[..., i, j] = gram[..., j, i] = sums[:, position]
    return gram, np.moveaxis(sums[:, len(pairs) :], 1, -1), weights @ target**2


def _log_determinant(gram: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Log determinant of moments [..., k, k], k = 2 or 3, and whether the columns are collinear up to rounding.

    The collinearity test does not depend on the units of the columns.
    """
    if gram.shape[-1] == 2:
        diagonal = gram[..., 0, 0] * gram[..., 1, 1]
        determinant = diagonal - gram[..., 0, 1] ** 2
    else:
        scale, correlation = _standardised(gram)
        determinant, diagonal = np.linalg.det(correlation), (scale**2).prod(-1)
        determinant = determinant * diagonal
    return np.log(np.maximum(determinant, 1e-300)), determinant <= COLLINEAR * diagonal


def _standardised(gram: Array) -> tuple[Array, Array]:
    """Norms of the columns [..., k], and the moments [..., k, k] of the columns divided by their norms."""
    scale = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 1e-300))
    return scale, gram / (scale[..., :, None] * scale[..., None, :])


def _root_of_inverse(gram: Array) -> Array:
    """Lower Cholesky factors [..., k, k] of the inverses, computed from unit columns to lose the fewest digits."""
    scale, correlation = _standardised(gram)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(correlation)) / scale[..., :, None])


def _solve(gram: Array, moment: Array) -> Array:
    """Solve many small symmetric systems, with closed forms for one and two unknowns, which dominate the run time.

    The solution for collinear columns is zero: fewer columns fit as well, and `project` tries those too.
    """
    size = moment.shape[-1]
    if size == 1:
        return moment / gram[..., 0]
    if size == 2:
        a, b, c = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
        first, second = moment[..., 0], moment[..., 1]
        determinant = a * c - b * b
        determinant = np.where(determinant > 0, determinant, np.inf)
        return np.stack([(c * first - b * second) / determinant, (a * second - b * first) / determinant], -1)
    scale, correlation = _standardised(gram)
    singular = (np.linalg.det(correlation) <= COLLINEAR)[..., None]
    regular = np.where(singular[..., None], np.eye(size), correlation)
    target = np.where(singular, 0, moment / scale)
    return np.asarray(np.linalg.solve(regular, target[..., None])[..., 0] / scale, np.float64)
