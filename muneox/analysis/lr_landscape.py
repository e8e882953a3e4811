"""The learning-rate landscape: the best learning rate at each width, its interval, and its drift with the width.

In muP the best learning rate does not change with the width. In the standard parametrization, Adam's best learning
rate falls about in inverse proportion to the width (Tensor Programs V, arXiv:2203.03466, Figure 1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron.errors import DataError
from muneox.analysis.families import Member, RunStatus, final_step, outcome

Edge = Literal["", "lowest", "highest", "divergence"]
Outcome = Literal["still", "moves", "unclear"]
Floats = NDArray[np.float64]

RESAMPLES = 2000
REACH = 1.0  # octaves around the best rate in which the loss is modelled as a parabola in log lr
DRIFT_LIMIT = 0.15  # octaves per doubling of the width, below which a basin counts as stable


@dataclass(frozen=True)
class LandscapePoint:
    """One run. loss: final loss in nats per token, or None if the run did not reach the step."""

    parametrization: str
    width: int
    lr: float
    seed: float
    loss: float | None
    status: RunStatus
    note: str
    run: str
    source: str


@dataclass(frozen=True)
class Basin:
    """The minimum of one width's curve.

    log2_lr: vertex of the parabola through the points around the best one. low, high: 95 % interval of log2_lr from
    seed noise, None without several seeds. loss: value of the parabola at its vertex. edge: the best rate is the
    lowest or the highest tried, or a neighbour diverged. At an edge no parabola is fitted and log2_lr is the best
    rate of the grid.
    """

    parametrization: str
    width: int
    log2_lr: float
    low: float | None
    high: float | None
    loss: float
    best_lr: float
    seeds: int
    edge: Edge = ""


@dataclass(frozen=True)
class Drift:
    """Octaves that the minimum moves per doubling of the width. low, high: 95 % interval, None if unknown.

    widths: the widths with a minimum inside the grid; slope is None with fewer than two of them. outcome: `moves` or
    `still` if the interval is known and decides it, otherwise `unclear`.
    """

    parametrization: str
    slope: float | None
    low: float | None
    high: float | None
    widths: tuple[int, ...]
    outcome: Outcome
    summary: str
    verdict: str


@dataclass(frozen=True)
class Landscape:
    """Runs, minima and drifts, and the result that every figure and table shows.

    passed: with `max_drift`, whether muP's minimum moves at most that many octaves per doubling; otherwise whether it
    is stable, or None if that is unclear. loss_range: the lowest loss, and the upper limit of a figure, below which
    nine of ten runs lie.
    """

    metric: str
    step: int
    points: list[LandscapePoint]
    basins: list[Basin]
    drifts: list[Drift]
    passed: bool | None
    max_drift: float | None
    loss_range: tuple[float, float]
    noise: dict[str, float | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def landscape(
    members: Sequence[Member],
    metric: str,
    step: int | None = None,
    resamples: int = RESAMPLES,
    max_drift: float | None = None,
) -> Landscape:
    """Analyse runs over learning rates and widths.

    step: the step whose loss is used (default: the last). max_drift: limit of the drift of muP's minimum, in octaves
    per doubling. Raises DataError for a run without a learning rate, for fewer than three learning rates, and if no
    run reached the step.
    """
    step = final_step(members, metric) if step is None else step
    points = [_point(member, metric, step) for member in members]
    if not any(point.status == "ok" for point in points):
        raise DataError(f"no run has a finite `{metric}` at step {step}: {points[0].run}: {points[0].note}")
    warnings = [f"{p.run}: {p.status}, {p.note}" for p in points if p.status != "ok"]
    warnings += [warning for member in members for warning in member.run.warnings]
    basins: list[Basin] = []
    drifts: list[Drift] = []
    noise: dict[str, float | None] = {}
    for name in dict.fromkeys(point.parametrization for point in points):
        curves = _curves([point for point in points if point.parametrization == name])
        noise[name] = _seed_noise(list(curves.values()))
        found = {width: _basin(name, width, curve, noise[name], resamples) for width, curve in curves.items()}
        basins += [basin for basin, _ in found.values()]
        drifts.append(_drift(name, found))
        warnings += [text for basin, _ in found.values() if (text := edge_warning(basin))]
        if noise[name] is None:
            warnings.append(f"{name}: only one seed, so the minima have no intervals; train with a second seed")
    passed = _passed(drifts, max_drift)
    return Landscape(metric, step, points, basins, drifts, passed, max_drift, _loss_range(points), noise, warnings)


def _passed(drifts: Sequence[Drift], max_drift: float | None) -> bool | None:
    """Apply the limit to muP, or to all runs if none is in muP. Without a limit, only muP must be stable."""
    of_mup = [drift for drift in drifts if drift.parametrization == "muP"]
    if max_drift is not None:
        return all(d.slope is not None and abs(d.slope) <= max_drift for d in of_mup or drifts)
    known: dict[Outcome, bool | None] = {"still": True, "moves": False, "unclear": None}
    return known[of_mup[0].outcome] if of_mup else None


def _loss_range(points: Sequence[LandscapePoint]) -> tuple[float, float]:
    good = sorted(point.loss for point in points if point.status == "ok" and point.loss is not None)
    return good[0], max(good[math.ceil(0.9 * len(good)) - 1], good[0] + 1e-3)


def _point(member: Member, metric: str, step: int) -> LandscapePoint:
    run = member.run
    if member.lr is None or member.lr <= 0:
        raise DataError(
            f"run {run.name} ({run.source}) has no learning rate in its configuration; name one with --lr-key"
        )
    loss, status, note = outcome(run, metric, step)
    return LandscapePoint(
        member.parametrization, member.width, member.lr, member.seed, loss, status, note, run.name, run.source
    )


@dataclass(frozen=True)
class _Curve:
    """One width. x: log2 of the rates, ascending. losses: of all seeds by rate. broken: a seed has no loss there."""

    x: Floats
    losses: list[list[float]]
    by_seed: list[dict[float, float]]
    broken: list[bool]

    @property
    def means(self) -> Floats:
        return np.array([np.mean(v) if v and not b else math.inf for v, b in zip(self.losses, self.broken)])

    @property
    def counts(self) -> Floats:
        return np.array([max(len(values), 1) for values in self.losses], dtype=np.float64)


def _curves(points: Sequence[LandscapePoint]) -> dict[int, _Curve]:
    widths: dict[int, dict[float, list[LandscapePoint]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        widths[point.width][point.lr].append(point)
    curves = {}
    for width, rates in sorted(widths.items()):
        if len(rates) < 3:
            name = f"{points[0].parametrization}, width {width}"
            raise DataError(f"{name}: {len(rates)} learning rate(s); a landscape needs three or more")
        cells = [rates[lr] for lr in sorted(rates)]
        good = [[p for p in cell if p.status == "ok" and p.loss is not None] for cell in cells]
        curves[width] = _Curve(
            x=np.log2(sorted(rates)),
            losses=[[float(p.loss or 0.0) for p in cell] for cell in good],
            by_seed=[{p.seed: float(p.loss or 0.0) for p in cell} for cell in good],
            broken=[len(ok) < len(cell) for ok, cell in zip(good, cells)],
        )
    return curves


def _seed_noise(curves: Sequence[_Curve]) -> float | None:
    """Standard deviation of one run's loss around the means of its rate and its seed, over points near the minima.

    The effect of a seed that is better at every rate does not move the minimum, so it is removed first. Returns None
    without several seeds.
    """
    squares = freedom = 0.0
    for curve in curves:
        best = int(np.argmin(curve.means))
        near = [i for i in range(max(best - 2, 0), min(best + 3, len(curve.x))) if not curve.broken[i]]
        seeds = sorted(set.intersection(*(set(curve.by_seed[i]) for i in near))) if near else []
        if len(seeds) < 2 or len(near) < 2:
            continue
        table = np.array([[curve.by_seed[i][seed] for seed in seeds] for i in near])
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        squares += float((rest**2).sum())
        freedom += (len(seeds) - 1) * (len(near) - 1)
    return math.sqrt(squares / freedom) if freedom else None


def _minima(x: Floats, curves: Floats) -> tuple[Floats, Floats]:
    """Return the log2 rate and the loss at the minimum of each of curves[k, rates].

    The minimum is the vertex of a least-squares parabola through the rates up to REACH octaves from the best one, and
    at least through its two neighbours. With the neighbours alone, a finer grid would give a shorter parabola and a
    less certain vertex. The fit is repeated around the rate nearest to the first vertex. If the best point is at an
    edge of the grid or next to an infinite loss, it is the minimum itself.
    """
    best = curves.argmin(1)
    place, loss = x[best], curves[np.arange(len(curves)), best]
    for _ in range(2):
        nearest = np.abs(x - place[:, None]).argmin(1)
        for i in np.unique(nearest):
            rows = np.flatnonzero(nearest == i)
            found = _vertices(x, curves[rows], i)
            good = np.isfinite(found[0])
            place[rows[good]], loss[rows[good]] = found[0][good], found[1][good]
    return place, loss


def _vertices(x: Floats, curves: Floats, i: int) -> tuple[Floats, Floats]:
    """Vertices of curves[k, rates] around the rate x[i]: log2 rates and losses, NaN without an enclosed minimum."""
    none = np.full(len(curves), np.nan)
    finite = np.isfinite(curves[0])
    if not 0 < i < len(x) - 1 or not finite[i - 1 : i + 2].all():
        return none, none
    reach = max(REACH, x[i] - x[i - 1], x[i + 1] - x[i])
    near = finite & (np.abs(x - x[i]) <= 1.001 * reach)
    a, b, c = np.polyfit(x[near] - x[i], curves[:, near].T, 2)
    a = np.where(a > 0, a, np.nan)
    vertex = np.clip(-b / (2 * a), *(x[near][[0, -1]] - x[i]))
    return x[i] + vertex, c + b * vertex + a * vertex**2


def _edge(means: Floats) -> Edge:
    best = int(means.argmin())
    if best == 0 or best == len(means) - 1:
        return "lowest" if best == 0 else "highest"
    return "" if np.isfinite(means[best - 1 : best + 2]).all() else "divergence"


def _basin(name: str, width: int, curve: _Curve, noise: float | None, resamples: int) -> tuple[Basin, Floats]:
    """The minimum, and its position in resamples of the seeds (empty without seed noise)."""
    means = curve.means
    if not np.isfinite(means).any():
        raise DataError(f"{name}, width {width}: every learning rate diverged or stopped")
    place, loss = _minima(curve.x, means[None])
    drawn = np.zeros(0)
    low = high = None
    if noise is not None:
        # Noise is pooled over all rates and widths because one point has only two or three seeds.
        rng = np.random.default_rng(width)
        draws = means + noise / np.sqrt(curve.counts) * rng.standard_normal((resamples, len(means)))
        drawn, _ = _minima(curve.x, draws)
        low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    best_lr = float(2.0 ** curve.x[int(np.argmin(means))])
    seeds = int(min(len(values) for values in curve.losses if values))
    return Basin(name, width, float(place[0]), low, high, float(loss[0]), best_lr, seeds, _edge(means)), drawn


def _drift(name: str, found: dict[int, tuple[Basin, Floats]]) -> Drift:
    inside = {width: pair for width, pair in found.items() if not pair[0].edge}
    if len(inside) < 2:
        verdict = _edge_verdict(name, [basin for basin, _ in found.values()])
        edge = len(found) > 1
        summary = "drift cannot be determined: " + ("best rate at the grid's edge" if edge else "only one width")
        return Drift(name, None, None, None, tuple(inside), "unclear", summary, verdict)
    x = np.log2(list(inside))
    x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slope = float(x @ np.array([basin.log2_lr for basin, _ in inside.values()]))
    low = high = None
    if all(len(drawn) for _, drawn in inside.values()):
        slopes = x @ np.array([drawn for _, drawn in inside.values()])
        low, high = (float(q) for q in np.quantile(slopes, [0.025, 0.975]))
    outcome = _outcome(slope, low, high)
    summary = f"minimum moves {slope:+.2f} octaves per doubling of the width"
    verdict = _verdict(name, slope, low, high, outcome, len(found) - len(inside))
    return Drift(name, slope, low, high, tuple(inside), outcome, summary, verdict)


def _outcome(slope: float, low: float | None, high: float | None) -> Outcome:
    if low is None or high is None:
        return "unclear"
    if abs(slope) >= DRIFT_LIMIT and low * high > 0:
        return "moves"
    return "still" if max(-low, high) < DRIFT_LIMIT else "unclear"


def _verdict(name: str, slope: float, low: float | None, high: float | None, outcome: Outcome, left_out: int) -> str:
    within = "" if low is None or high is None else f" (95 % interval {low:+.2f} to {high:+.2f})"
    verdict = f"{name}: the best learning rate moves {slope:+.2f} octaves per doubling of the width{within}"
    far = abs(slope) >= DRIFT_LIMIT
    if outcome != "unclear":
        verdict += ": it moves" if outcome == "moves" else ": it is stable"
    elif not within:
        verdict += ": it moves" if far else ": it is stable, judging from one seed"
    else:
        verdict += (
            f": it seems to {'move' if far else 'be stable'}; to decide, add seeds or refine the grid around the minima"
        )
    return verdict + (f"; {left_out} width(s) left out with a minimum at the edge of the grid" if left_out else "")


def _edge_verdict(name: str, basins: Sequence[Basin]) -> str:
    if len(basins) < 2:
        return f"{name}: the drift cannot be determined: only one width"
    return f"{name}: the drift cannot be determined: best rate at the grid's edge for all widths but one, or for all"


def edge_warning(basin: Basin) -> str:
    """Advice for a minimum at an edge of the grid, otherwise an empty string."""
    where = f"{basin.parametrization}, width {basin.width}: the best learning rate, {basin.best_lr:.3g},"
    if basin.edge == "divergence":
        return f"{where} has a neighbour that diverged: add rates between the two"
    if basin.edge:
        return f"{where} is the {basin.edge} one tried: try {'lower' if basin.edge == 'lowest' else 'higher'} rates"
    return ""
