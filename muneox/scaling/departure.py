"""The smooth departure of real runs from a law: its correlations between positions in log N, log D or log C."""

from __future__ import annotations

import numpy as np

from muneox.scaling.prior import Array

MOST_CORRELATED = 1500  # with more runs, the departure from the law is left out: its matrix is n x n


def matern(first: Array, second: Array, length: float) -> Array:
    """Matern 3/2 correlations [m, n] between positions [m, q] and [n, q]."""
    steps = first[:, None] - second[None]
    distance = np.sqrt(3 * (steps**2).sum(-1)) / length
    return np.asarray((1 + distance) * np.exp(-distance))


def departure(positions: Array, length: float) -> Array | None:
    """Correlations [n, n] of the departure from the law at positions [n, q]; None for too many runs."""
    return matern(positions, positions, length) if len(positions) <= MOST_CORRELATED else None
