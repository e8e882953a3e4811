"""Fits that the loss predictor is compared with: plain curve_fit, the Huber fit of Hoffmann et al., and best runs.

Each baseline takes the fitted runs and the positions of the targets, and returns the predicted losses, or NaN if its
fit fails. Positions are [n, q] and [m, q]: one variable x, or N and D.
"""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit, minimize
from scipy.special import huber, logsumexp

from megatron.errors import DataError
from muneox.scaling.compute import envelope

Array = NDArray[np.float64]
DELTA = 1e-3  # of the Huber loss (Hoffmann et al., arXiv:2203.15556, section D.2)
STEPS = 300  # of L-BFGS, from each start
STARTS = {"exponent": (0.2, 0.5), "floor": (0.4, 0.8)}  # floor: as a share of the smallest loss


def _law(z: Array, floor: float, *terms: float) -> Array:
    """floor + sum_k a_k z_k^-b_k. z: [q, n]. terms: a_1, b_1, a_2, ..."""
    pairs = zip(z, terms[::2], terms[1::2])
    return np.asarray(floor + sum(a * axis**-b for axis, a, b in pairs))


def plain(positions: Array, loss: Array, targets: Array) -> Array:
    """scipy's curve_fit of the law, from one start, without weights or bounds."""
    centre = np.exp(np.log(positions).mean(0))
    start = [0.7 * loss.min(), *[0.3 * loss.min(), 0.3] * positions.shape[1]]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # of a poorly determined covariance
            found, _ = curve_fit(_law, (positions / centre).T, loss, start, maxfev=20000)
            return _law((targets / centre).T, *found)
    except (RuntimeError, ValueError, TypeError):
        return np.full(len(targets), np.nan)


def huber_fit(positions: Array, loss: Array, targets: Array) -> Array:
    """The best of several L-BFGS fits of log losses under the Huber loss (Hoffmann et al., eq. 3)."""
    centre = np.log(positions).mean(0)
    log, wanted, y = np.log(positions) - centre, np.log(targets) - centre, np.log(loss)

    def predicted(theta: Array, z: Array) -> Array:
        terms = theta[1::2] - theta[2::2] * z
        return np.asarray(np.exp(logsumexp(np.column_stack([np.full(len(z), theta[0]), terms]), axis=1)))

    def objective(theta: Array) -> tuple[float, Array]:
        terms = np.column_stack([np.full(len(log), theta[0]), theta[1::2] - theta[2::2] * log])
        fit = logsumexp(terms, axis=1)
        slope, share = np.clip(fit - y, -DELTA, DELTA), np.exp(terms - fit[:, None])
        gradient = np.empty_like(theta)
        gradient[0], gradient[1::2] = slope @ share[:, 0], slope @ share[:, 1:]
        gradient[2::2] = -(slope @ (share[:, 1:] * log))
        return float(huber(DELTA, fit - y).sum()) * 1e3, gradient * 1e3

    best, q = None, positions.shape[1]
    for floor, *exponents in product(STARTS["floor"], *[STARTS["exponent"]] * q):
        height = np.log((1 - floor) * loss.min() / q + 0.1 * loss.min())
        start = np.array([np.log(floor * loss.min()), *(v for b in exponents for v in (height, b))])
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
        if best is None or found.fun < best.fun:
            best = found
    return predicted(best.x, wanted) if best is not None else np.full(len(targets), np.nan)


def best_per_budget(flops: Array, loss: Array, targets: Array) -> Array:
    """curve_fit of a C^b + c to the best run of each budget. targets: FLOPs [m]."""
    try:
        kept = envelope(flops, loss)
    except DataError:
        return np.full(len(targets), np.nan)
    return plain(flops[kept, None], loss[kept], targets[:, None])
