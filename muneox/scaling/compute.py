"""L(C): loss against compute, from the best run at each budget (Hoffmann et al., arXiv:2203.15556, section 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron.errors import DataError
from muneox.scaling.power_law import checked
from muneox.scaling.prior import Prior

BUDGETS_PER_DECADE = 4
# At the optimum of L(N, D), L(C) has the exponent alpha beta / (alpha + beta): half of an exponent of 0.33. Published
# runs choose a smaller median, and the noise and departure of Prior.
PRIOR = Prior(exponent=0.12)


def training_flops(params: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
    """6 N D: forward and backward FLOPs of a dense transformer without attention scores (Kaplan et al., 2020)."""
    return 6.0 * np.asarray(params, np.float64) * np.asarray(tokens, np.float64)


def best_of_budgets(flops: ArrayLike, loss: ArrayLike, per_decade: int = BUDGETS_PER_DECADE) -> NDArray[np.int64]:
    """Indices of the best point of each budget, in order of increasing compute. Budgets are equal bins of log C.

    flops, loss: [n], points of the curves of one or more runs.
    """
    compute, value = checked(flops, loss, least=1)
    budget = np.floor(np.log10(compute) * per_decade + 1e-9).astype(np.int64)
    members = [np.flatnonzero(budget == b) for b in np.unique(budget)]
    return np.array([some[np.argmin(value[some])] for some in members], np.int64)


def envelope(flops: ArrayLike, loss: ArrayLike, per_decade: int = BUDGETS_PER_DECADE) -> NDArray[np.int64]:
    """As best_of_budgets, but a budget is left out if a smaller one reaches the same loss or a lower one.

    Raises DataError if fewer than three budgets remain.
    """
    checked(flops, loss)
    value, kept = np.asarray(loss, np.float64).ravel(), list[int]()
    for index in best_of_budgets(flops, loss, per_decade):
        if not kept or value[index] < value[kept[-1]]:
            kept.append(int(index))
    if len(kept) < 3:
        raise DataError(f"only {len(kept)} budgets improve on all smaller ones; L(C) needs at least 3")
    return np.array(kept, np.int64)
