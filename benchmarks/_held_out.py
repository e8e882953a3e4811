"""Rolling hold-outs: runs up to a budget are fitted, and runs 3, 10, 30 and 100 times beyond it are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from _published_tables import Array, Runs
from numpy.typing import NDArray

from muneox.scaling.compute import best_of_budgets

FACTORS = (3, 10, 30, 100)
HALF_STEP = 10**0.25  # a target belongs to the factor that is nearest on the scale 3, 10, 30, 100
FEWEST_SIZES = 4
FEWEST_RUNS = 8  # of a surface, which has five parameters
# Targets of the table's rows are the best run of a budget, and in the last row every run of it.
ANY = "surface, any run"
ROWS = ("size", "compute", "surface", ANY)


@dataclass(frozen=True)
class HeldOut:
    """One law, the runs [n] fitted with it, and the held-out runs [m] to predict, as indices in order of compute.

    cells: for each row and factor of the table, which of the m targets belong to it.
    """

    runs: Runs
    law: str
    fitted: NDArray[np.int64]
    targets: NDArray[np.int64]
    cells: dict[tuple[str, int], NDArray[np.int64]]

    @property
    def actual(self) -> Array:
        return self.runs.loss[self.targets]

    def positions(self, which: NDArray[np.int64]) -> Array:
        """What the law depends on, for the runs `which` [k]: parameters, FLOPs, or both parameters and tokens."""
        runs = self.runs
        if self.law == "size":
            return runs.params[which, None]
        if self.law == "compute" or runs.tokens is None:
            return runs.flops[which, None]
        return np.stack([runs.params[which], runs.tokens[which]], -1)


def held_out(tables: Sequence[Runs]) -> list[HeldOut]:
    """The hold-outs of all tables, laws and budgets."""
    return [found for runs in tables for law in runs.laws for found in _of(runs, law)]


def _of(runs: Runs, law: str) -> Iterator[HeldOut]:
    """A hold-out for every budget with enough runs up to it."""
    best = np.arange(len(runs.loss)) if law == "size" else best_of_budgets(runs.flops, runs.loss)
    for cut in runs.flops[best][:-1]:
        fitted = np.flatnonzero(runs.flops <= cut)
        sizes = runs.params[fitted] if law == "surface" else best[runs.flops[best] <= cut]
        if len(np.unique(sizes)) < FEWEST_SIZES or (law == "surface" and len(fitted) < FEWEST_RUNS):
            continue
        chosen: dict[tuple[str, int], NDArray[np.int64]] = {}
        for factor in FACTORS:
            chosen[law, factor] = _nearest(runs.flops, best, cut, factor)
            if law == "surface":
                chosen[ANY, factor] = _within(runs.flops, cut, factor)
        targets = np.unique(np.concatenate(list(chosen.values())))
        if len(targets):
            cells = {key: np.searchsorted(targets, some) for key, some in chosen.items() if len(some)}
            yield HeldOut(runs, law, fitted, targets, cells)


def _within(flops: Array, cut: float, factor: int) -> NDArray[np.int64]:
    """Indices of the runs at about `factor` times the budget `cut`."""
    reach = flops / cut / factor
    return np.flatnonzero((reach > 1 / HALF_STEP) & (reach <= HALF_STEP) & (flops > cut))


def _nearest(flops: Array, best: NDArray[np.int64], cut: float, factor: int) -> NDArray[np.int64]:
    """Of the best runs of their budgets, the one that is nearest to the factor, if one belongs to it."""
    chosen = best[_within(flops[best], cut, factor)]
    return chosen[np.argsort(np.abs(np.log(flops[chosen] / cut / factor)))[:1]]


@dataclass(frozen=True)
class Score:
    """Per target [m]: relative error, being inside the interval, and the interval's relative width and score."""

    error: Array
    inside: NDArray[np.bool_]
    width: Array
    interval_score: Array

    @classmethod
    def of(cls, draws: Array, actual: Array, level: float = 0.9) -> Score:
        """Compare draws [s, m] with the losses [m]. NaN draws, of a refused forecast, are outside with NaN errors."""
        tail = (1 - level) / 2
        low, middle, high = np.quantile(draws, [tail, 0.5, 1 - tail], axis=0) / actual
        # The interval score of Gneiting and Raftery (2007), section 6.2, relative to the loss.
        missed = np.maximum(low - 1, 0) + np.maximum(1 - high, 0)
        return cls(middle - 1, (low <= 1) & (high >= 1), high - low, high - low + missed / tail)


def quantile(values: Array, weights: Array, share: float) -> float:
    """The smallest value up to which `share` of the weight lies. NaN counts as infinite: a fit that failed."""
    values = np.where(np.isnan(values), np.inf, values)
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, share * total[-1] - 1e-12)])
