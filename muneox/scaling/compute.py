"""L(C): loss against compute, from the best run at each budget (Hoffmann et al., arXiv:2203.15556, section 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron.errors import DataError
from muneox.scaling.power_law import checked

BUDGETS_PER_DECADE = 4


def training_flops(params: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
    """6 N D: forward and backward FLOPs of a dense transformer without attention scores (Kaplan et al., 2020)."""
    return 6.0 * np.asarray(params, np.float64) * np.asarray(tokens, np.float64)


def envelope(flops: ArrayLike, loss: ArrayLike, per_decade: int = BUDGETS_PER_DECADE) -> NDArray[np.int64]:
    """Indices of the best point of each budget, in order of increasing compute.

    flops, loss: [n], points of the curves of one or more runs. Budgets are equal bins of log C. A budget is left out
    if a smaller one reaches the same loss or a lower one. Raises DataError if fewer than three budgets remain.
    """
    compute, value = checked(flops, loss)
    budget = np.floor(np.log10(compute) * per_decade + 1e-9).astype(np.int64)
    best = [
        members[np.argmin(value[members])] for b in np.unique(budget) if len(members := np.flatnonzero(budget == b))
    ]
    kept: list[int] = []
    for index in sorted(best, key=lambda i: compute[i]):
        if not kept or value[index] < value[kept[-1]]:
            kept.append(int(index))
    if len(kept) < 3:
        raise DataError(f"only {len(kept)} budgets improve on all smaller ones; L(C) needs at least 3")
    return np.array(kept, dtype=np.int64)
