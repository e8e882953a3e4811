"""The leave-one-dataset-out table: errors and intervals of the predictor by law and distance, next to baselines.

The predictor has constants: for each law the median of the exponents, the scales of noise and departure, and for the
surface the window around the best runs. For each dataset they are chosen from CANDIDATES by the interval score on all
other datasets, so that no dataset judges constants that it chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from _baselines import best_per_budget, huber_fit, plain
from _held_out import ANY, FACTORS, ROWS, HeldOut, Score, quantile
from _published_tables import Array

from megatron.errors import DataError
from muneox.scaling.compute import envelope
from muneox.scaling.power_law import sample_power_law
from muneox.scaling.prior import Prior
from muneox.scaling.surface import near_best, sample_surface, window_of

DRAWS = 1000
BASELINES = ("curve_fit", "Huber", "best runs")


@dataclass(frozen=True)
class Constants:
    """Constants of the predictor that published runs can choose, for one law. window: only of surfaces."""

    exponent: float
    sigma: float
    tau: float
    window: float = np.inf

    def __str__(self) -> str:
        found = f"exponents near {self.exponent:g}, noise {self.sigma:.2%}, departure {self.tau:.2%}"
        return found if np.isinf(self.window) else f"{found}, runs within {self.window:.0%} of the best"


_LINE = ((1e-3, 1e-3), (1e-3, 3e-3), (2e-3, 1e-3), (2e-3, 2e-3), (2e-3, 3e-3))  # sigma, tau
_SURFACE = ((1e-3, 3e-3), (2e-3, 3e-3))
CANDIDATES = {
    "size": [Constants(e, *noise) for e in (0.2, 0.25, 0.33) for noise in _LINE],
    "compute": [Constants(e, *noise) for e in (0.12, 0.165, 0.25, 0.33) for noise in _LINE],
    "surface": [Constants(e, *noise, w) for e in (0.25, 0.33) for noise in _SURFACE for w in (0.02, 0.05, np.inf)],
}


def predict(case: HeldOut, constants: Constants) -> Array:
    """Draws of the targets' losses [s, m]; NaN if the predictor refuses the runs."""
    prior = Prior(constants.sigma, constants.tau, exponent=constants.exponent)
    at, targets, loss = case.positions(case.fitted), case.positions(case.targets), case.runs.loss[case.fitted]
    try:
        if case.law == "surface":
            return _surface(at, loss, targets, prior, constants.window)
        kept = np.arange(len(loss)) if case.law == "size" else envelope(at[:, 0], loss)
        return sample_power_law(at[kept, 0], loss[kept], prior=prior, draws=DRAWS).observe(targets[:, 0])
    except DataError:
        return np.full((1, len(targets)), np.nan)


def _surface(at: Array, loss: Array, targets: Array, prior: Prior, window: float) -> Array:
    """Each target is predicted with the window that a forecast of it alone has."""
    windows = window_of(at[:, 0], at[:, 1], loss, *targets.T, prior=prior, window=window)
    found = np.empty((DRAWS, len(targets)))
    for width in np.unique(windows):
        near, chosen = near_best(at[:, 0], at[:, 1], loss, width), windows == width
        posterior = sample_surface(at[near, 0], at[near, 1], loss[near], prior=prior, draws=DRAWS)
        draws = posterior.observe(*targets[chosen].T)
        found[:, chosen] = draws[np.arange(DRAWS) % len(draws)]
    return found


def baselines(case: HeldOut) -> dict[str, Array]:
    """Relative errors [m] of each baseline. The law of compute is fitted to the best run of each budget."""
    runs, fitted = case.runs, case.fitted
    flops, reach = runs.flops[fitted], runs.flops[case.targets]
    if case.law == "compute":
        try:
            fitted = fitted[envelope(flops, runs.loss[fitted])]
        except DataError:
            return {name: np.full(len(reach), np.nan) for name in BASELINES}
    at, targets = case.positions(fitted), case.positions(case.targets)
    found = (
        plain(at, runs.loss[fitted], targets),
        huber_fit(at, runs.loss[fitted], targets),
        best_per_budget(flops, runs.loss[case.fitted], reach),
    )
    return {name: values / case.actual - 1 for name, values in zip(BASELINES, found)}


def choose(cases: Sequence[HeldOut], scores: dict[Constants, list[Score]]) -> dict[str, Constants]:
    """For each dataset, the constants with the best score over all other datasets.

    The score is the mean over datasets, rows and factors of the logarithm of the mean interval score, so that near
    and far targets, and datasets of any size, count the same.
    """
    datasets = list(dict.fromkeys(case.runs.dataset for case in cases))
    table = {c: {d: _mean_score(cases, found, d) for d in datasets} for c, found in scores.items()}

    def of_others(candidate: Constants, left: str) -> float:
        others = [value for name, value in table[candidate].items() if name != left]
        return float(np.mean(others)) if others else 0.0

    return {left: min(table, key=partial(of_others, left=left)) for left in datasets}


def _mean_score(cases: Sequence[HeldOut], scores: Sequence[Score], dataset: str) -> float:
    of_cell: dict[tuple[str, int], list[float]] = {}
    for case, score in zip(cases, scores):
        if case.runs.dataset == dataset:
            for key, places in case.cells.items():
                of_cell.setdefault(key, []).extend(np.nan_to_num(score.interval_score[places], nan=1.0).tolist())
    return float(np.mean([np.log(np.mean(values)) for values in of_cell.values()]))


@dataclass(frozen=True)
class Cell:
    """The targets of one row and factor, all arrays [k] over targets. weight: see Runs; it is shared by a case."""

    weight: Array
    ours: Score
    baseline: dict[str, Array]

    @property
    def count(self) -> float:
        """Targets, where losses of the same runs count as one."""
        return float(self.weight.sum())

    @property
    def coverage(self) -> float:
        return float(np.average(self.ours.inside, weights=self.weight))

    def errors(self, error: Array) -> tuple[float, float]:
        """Median and 90th percentile of absolute relative errors [k]; infinite where the fit failed."""
        middle, far = (quantile(np.abs(error), self.weight, share) for share in (0.5, 0.9))
        return middle, far

    def as_json(self) -> dict[str, Any]:
        """The numbers of the printed table; null for the error of a fit that failed."""
        errors = {"predictor": self.ours.error} | self.baseline
        found = {name: [v if np.isfinite(v) else None for v in self.errors(e)] for name, e in errors.items()}
        width, bias = (quantile(values, self.weight, 0.5) for values in (self.ours.width, self.ours.error))
        return {"targets": self.count, "coverage": self.coverage, "width": width, "bias": bias, "errors": found}


def collect(
    cases: Sequence[HeldOut],
    scores: Sequence[Score],
    others: Sequence[dict[str, Array]],
    row: str,
    factor: int,
    dataset: str | None = None,
) -> Cell | None:
    """The cell of a row and factor, of all datasets or one; None without targets."""
    parts = [
        (case, score, other, case.cells[row, factor])
        for case, score, other in zip(cases, scores, others)
        if (row, factor) in case.cells and dataset in (None, case.runs.dataset)
    ]
    if not parts:
        return None
    weight = np.concatenate([np.full(len(at), case.runs.weight / len(at)) for case, _, _, at in parts])
    names = ("error", "inside", "width", "interval_score")
    ours = Score(*(np.concatenate([getattr(score, name)[at] for _, score, _, at in parts]) for name in names))
    return Cell(weight, ours, {name: np.concatenate([o[name][at] for _, _, o, at in parts]) for name in BASELINES})


def show(cases: Sequence[HeldOut], scores: Sequence[Score], others: Sequence[dict[str, Array]]) -> dict[str, Cell]:
    """Print the table. Returns its cells by row and factor, as `size 10`."""
    print(f"{'median / 90th percentile of the error':37}{'targets':>9}{'predictor':>17}", end="")
    print("".join(f"{name:>17}" for name in BASELINES), f"{'inside 90 %':>13}{'width':>9}{'bias':>9}")
    cells: dict[str, Cell] = {}
    for row in ROWS:
        for factor in FACTORS:
            if (cell := collect(cases, scores, others, row, factor)) is None:
                continue
            cells[f"{row} {factor}"] = cell
            numbers = cell.as_json()
            columns = "".join(f"{_errors(error, cell):>17}" for error in (cell.ours.error, *cell.baseline.values()))
            print(f"{row + f', {factor}x':37}{cell.count:9.0f}{columns}", end="")
            print(f" {cell.coverage:13.0%}{numbers['width']:9.2%}{numbers['bias']:+9.2%}")
    return cells


def show_datasets(cases: Sequence[HeldOut], scores: Sequence[Score], others: Sequence[dict[str, Array]]) -> None:
    """Print median error and coverage by dataset at 10 times the fitted compute."""
    print(f"\n{'at 10x, by dataset':37}{'targets':>9}{'predictor':>17}{'curve_fit':>17}{'inside 90 %':>14}")
    for dataset in dict.fromkeys(case.runs.dataset for case in cases):
        for row in ROWS:
            cell = collect(cases, scores, others, row, 10, dataset)
            if cell is not None and row != ANY:
                ours, theirs = _errors(cell.ours.error, cell), _errors(cell.baseline["curve_fit"], cell)
                print(f"{dataset + ', ' + row:37}{cell.count:9.1f}{ours:>17}{theirs:>17}{cell.coverage:14.0%}")


def _errors(error: Array, cell: Cell) -> str:
    return " / ".join("failed" if np.isinf(v) else f"{v:.2%}" for v in cell.errors(error))


def leave_one_out(cases: Sequence[HeldOut], candidates: Mapping[str, Sequence[Constants]] = CANDIDATES) -> list[Score]:
    """The scores of all cases, each with the constants that the other datasets chose for its law. Prints the choice."""
    found: dict[int, Score] = {}
    print("constants, chosen without the dataset that they are judged on:")
    for law, some in candidates.items():
        places = [i for i, case in enumerate(cases) if case.law == law]
        mine = [cases[i] for i in places]
        scores = {c: [Score.of(predict(case, c), case.actual) for case in mine] for c in some}
        chosen = choose(mine, scores)
        for constants in dict.fromkeys(chosen.values()):
            print(f"  {law}, {constants}: {', '.join(name for name, c in chosen.items() if c == constants)}")
        for place, case, *of_case in zip(places, mine, *scores.values()):
            found[place] = dict(zip(scores, of_case))[chosen[case.runs.dataset]]
    return [found[i] for i in range(len(cases))]
