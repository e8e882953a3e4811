"""Check that wider models are better at every logged step, given the seed noise of their training curves.

In muP, with the same hyperparameters, a wider model should do at least as well at any point of the training (Tensor
Programs V, arXiv:2203.03466, section 8 and Figure 7). If it does not, some quantity is scaled incorrectly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from megatron.errors import DataError
from muneox.analysis.families import Member, by_parametrization, outcome
from muneox.runs import Smoothing, common_steps, smooth

Floats = NDArray[np.float64]

NOT_SMOOTHED = Smoothing()
ERROR_RATE = 0.05  # of a whole comparison over all its steps
NEIGHBOURS = 5  # logged points on either side that the noise at a step is pooled over


@dataclass(frozen=True)
class Comparison:
    """Comparison of a width with the next wider one.

    difference: wide minus narrow by step, in nats. error: its standard error. margin: the difference that noise can
    cause. worse, better: steps where the wider model is worse or better beyond noise. paired: differences were taken
    seed by seed.
    """

    parametrization: str
    narrow: int
    wide: int
    steps: list[int]
    difference: list[float]
    error: list[float]
    margin: list[float]
    worse: list[int]
    better: list[int]
    paired: bool

    @property
    def passed(self) -> bool:
        return not self.worse


@dataclass(frozen=True)
class TrainingCurve:
    """Training curve of one run, or the mean over a width's seeds if `run` is empty."""

    parametrization: str
    width: int
    seed: float | None
    run: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class WidthCheck:
    """Result of a width check.

    judged: muP if any run is in muP, otherwise the first parametrization. passed: in `judged`, no wider model is worse
    at any step.
    """

    metric: str
    smoothing: str
    from_step: int
    judged: str
    passed: bool
    curves: list[TrainingCurve]
    comparisons: list[Comparison]
    verdicts: list[str]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def width_check(
    members: Sequence[Member],
    metric: str,
    *,
    smoothing: Smoothing = NOT_SMOOTHED,
    from_step: int | None = None,
    tolerance: float = 0.0,
) -> WidthCheck:
    """Compare each width with the next wider one at every step that both have logged.

    from_step: earlier steps are ignored. The default ignores the warm-up: widths start with different losses, which
    say nothing about the training. tolerance: nats by which a wider model can be worse in addition to the noise.
    Raises DataError if no parametrization has two widths, or if two widths share no step.
    """
    curves: list[TrainingCurve] = []
    comparisons: list[Comparison] = []
    warnings: list[str] = []
    from_step = warmup_end(members) if from_step is None else from_step
    for name, group in by_parametrization(members).items():
        widths = sorted({member.width for member in group})
        for member in group:
            warnings += member.run.warnings
            last = int(member.run.series_of(metric).steps[-1])
            _, status, note = outcome(member.run, metric, last)
            warnings += [f"{member.run.name}: {status}, {note}"] if status != "ok" else []
        tables = {
            width: _table([m for m in group if m.width == width], metric, smoothing, from_step) for width in widths
        }
        curves += [curve for width in widths for curve in _curves(name, width, tables[width])]
        pairs = list(zip(widths, widths[1:]))
        comparisons += [_compare(name, a, b, tables[a], tables[b], tolerance, len(pairs)) for a, b in pairs]
        if pairs and any(len(table.seeds) < 2 for table in tables.values()):
            warnings.append(f"{name}: a width has one seed, so noise is estimated only from step to step")
    if not comparisons:
        widths = sorted({member.width for member in members})
        raise DataError(f"a width check needs two or more widths; the runs have only {', '.join(map(str, widths))}")
    judged = "muP" if any(c.parametrization == "muP" for c in comparisons) else comparisons[0].parametrization
    verdicts = [_verdict(comparison) for comparison in comparisons]
    passed = all(c.passed for c in comparisons if c.parametrization == judged)
    return WidthCheck(metric, str(smoothing), from_step, judged, passed, curves, comparisons, verdicts, warnings)


def warmup_end(members: Sequence[Member]) -> int:
    """First step after the warm-up of all runs, and at least 2: step 1 logs the loss at initialisation."""
    ends = [2]
    for member in members:
        share, steps = (
            member.run.number("warmup"),
            member.run.number("lr_decay_iters") or member.run.number("train_iters"),
        )
        ends.append(int(share * steps) + 1 if share and steps else 2)
    return max(ends)


@dataclass(frozen=True)
class _Table:
    """Curves of one width. values: [seeds, steps], over the steps that all seeds have logged."""

    seeds: list[float]
    runs: list[str]
    steps: NDArray[np.int64]
    values: Floats


def _table(members: Sequence[Member], metric: str, smoothing: Smoothing, from_step: int) -> _Table:
    steps = common_steps([member.run for member in members], metric)
    steps = steps[steps >= from_step]
    if not len(steps):
        raise DataError(f"width {members[0].width} has not logged `{metric}` at any step from {from_step} on")
    rows = []
    for member in members:
        series = smooth(member.run.series_of(metric), smoothing)
        rows.append(series.values[np.searchsorted(series.steps, steps)])
    return _Table([m.seed for m in members], [m.run.name for m in members], steps, np.array(rows))


def _curves(name: str, width: int, table: _Table) -> list[TrainingCurve]:
    steps = table.steps.tolist()
    found = [
        TrainingCurve(name, width, s, run, steps, v.tolist())
        for s, run, v in zip(table.seeds, table.runs, table.values)
    ]
    return [*found, TrainingCurve(name, width, None, "", steps, table.values.mean(0).tolist())]


def _compare(name: str, narrow: int, wide: int, a: _Table, b: _Table, tolerance: float, pairs: int) -> Comparison:
    steps = np.intersect1d(a.steps, b.steps)
    if not len(steps):
        raise DataError(f"widths {narrow} and {wide} have logged at no common step")
    x, y = a.values[:, np.isin(a.steps, steps)], b.values[:, np.isin(b.steps, steps)]
    shared = [seed for seed in a.seeds if seed in b.seeds]
    paired = len(shared) == len(a.seeds) == len(b.seeds) == len(set(shared))
    if paired:  # the same seed draws the same batches, so both runs share much of the noise
        difference = y[[b.seeds.index(seed) for seed in a.seeds]] - x
        mean, error, freedom = _pooled(difference)
    else:
        mean = y.mean(0) - x.mean(0)
        errors = [_pooled(table) for table in (x, y)]
        error = np.hypot(errors[0][1], errors[1][1])
        freedom = min(errors[0][2], errors[1][2])
    threshold = float(stats.t.ppf(1 - ERROR_RATE / (len(steps) * pairs), freedom))
    margin = threshold * error
    broken = ~np.isfinite(y.mean(0)) & np.isfinite(x.mean(0))
    with np.errstate(invalid="ignore"):
        worse, better = steps[(mean > margin + tolerance) | broken], steps[mean < -margin]
    columns = (mean.tolist(), error.tolist(), margin.tolist(), worse.tolist(), better.tolist())
    return Comparison(name, narrow, wide, steps.tolist(), *columns, paired=paired)


def _pooled(values: Floats) -> tuple[Floats, Floats, int]:
    """Mean over seeds [steps], its standard error and degrees of freedom. Variance is pooled over nearby steps.

    With one seed, the variance comes from successive differences (von Neumann), which a slow trend does not affect.
    """
    seeds, steps = values.shape
    mean = values.mean(0)
    with np.errstate(invalid="ignore"):
        spread = values.var(0, ddof=1) if seeds > 1 else np.append(np.diff(mean) ** 2, np.nan) / 2
    reach = min(NEIGHBOURS, max(steps - 1, 0))
    padded = np.pad(spread, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    known = np.isfinite(windows)
    total = np.where(known, windows, 0.0).sum(1)
    count = known.sum(1)
    variance = np.divide(total, count, out=np.full(steps, np.nan), where=count > 0)
    freedom = max(seeds - 1, 1) * max(min(steps, reach + 1) - (seeds == 1), 1)
    return mean, np.sqrt(variance / seeds), freedom


def _verdict(comparison: Comparison) -> str:
    c = comparison
    head = f"{c.parametrization}: {c.wide} against {c.narrow}: "
    n = len(c.steps)
    if c.passed:
        return f"{head}better beyond noise at {len(c.better)} of {n} steps, worse at none"
    worst = max(range(n), key=lambda i: (not math.isfinite(c.difference[i]), c.difference[i]))
    by = c.difference[worst]
    amount = f"by {by:.4f} (noise {c.margin[worst]:.4f})" if math.isfinite(by) else "with a loss that is not finite"
    return f"{head}WORSE at {len(c.worse)} of {n} steps, most at step {c.steps[worst]} {amount}; first at {c.worse[0]}"
