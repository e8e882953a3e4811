"""The verdict of a coordinate check: whether activations and their changes keep their size when the model grows.

For every module, statistic and step, the slope of log2(statistic) on log2(width) is fitted by ordinary least squares.
In muP the slope is near 0. A mistake in the parametrization shows as a power of the width (Tensor Programs V,
arXiv:2203.03466, Appendix D.1). The uncertainty is a bootstrap over seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mup.records import FDICT

__all__ = ["Row", "Thresholds", "Verdict", "verdict"]

CHANGE = "rms_delta"  # the statistic of changes in training, of mup.records

# Query times key before the softmax can shrink as the width grows (Tensor Programs V, Appendix D.1). No parameter
# could declare this, so attention logits are recognised by name.
ATTENTION_LOGITS = re.compile(r"(attn|attention)[._]?(logits|scores)|(^|\.)(scores|attn_weights_pre_softmax)\Z", re.I)


def is_attention_logits(module: str, statistic: str, t: int) -> bool:
    """Whether a module has one of the usual names of attention logits."""
    return ATTENTION_LOGITS.search(module) is not None


@dataclass(frozen=True)
class Thresholds:
    """Limits of a slope (powers of the width), and the amount of data that a verdict needs.

    A row fails if its slope is above `max_slope` and its lower bound above `max_low`, or if its slope is below
    `min_slope`.
    """

    max_slope: float = 0.15
    max_low: float = 0.05
    min_slope: float = -0.30
    min_widths: int = 4
    min_range: float = 8.0
    min_seeds: int = 3


@dataclass(frozen=True)
class Row:
    """One fitted slope. low, high: 95 % bootstrap interval over seeds. reason: why it fails; empty if it passes."""

    module: str
    statistic: str
    t: int
    slope: float
    low: float
    high: float
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """Result of a coordinate check.

    passed: no row fails and the check is not powerless.
    powerless: whether no change fails in the reference (SP); None without a reference.
    """

    passed: bool
    rows: list[Row]
    axis: str = "width"
    values: list[float] = field(default_factory=list)
    seeds: int = 0
    powerless: bool | None = None
    thresholds: Thresholds = Thresholds()

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.ok]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that can be written as JSON."""
        return asdict(self)

    def table(self, only_failures: bool = False) -> str:
        """Return a table with one line per row, followed by the verdict."""
        shown = self.failures if only_failures else self.rows
        head = ("module", "statistic", "t", "slope", "95 % interval", "verdict")
        lines = [head] + [
            (
                row.module or "(model)",
                row.statistic,
                str(row.t),
                f"{row.slope:+.3f}",
                f"[{row.low:+.3f}, {row.high:+.3f}]",
                "ok" if row.ok else f"FAIL: {row.reason}",
            )
            for row in shown
        ]
        size = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(cell.ljust(n) for cell, n in zip(line, size)).rstrip() for line in lines]
        return "\n".join([*text, self.summary()])

    def summary(self) -> str:
        """Return the verdict in one sentence."""
        scope = (
            f"{len(self.rows)} slopes over {self.axis} {', '.join(f'{v:g}' for v in self.values)}, {self.seeds} seeds"
        )
        if self.failures:
            worst = max(self.failures, key=lambda row: abs(row.slope) if math.isfinite(row.slope) else math.inf)
            where = f"{worst.module or '(model)'} {worst.statistic}: {worst.reason}"
            return f"FAIL: {len(self.failures)} of {scope}; worst: {where}"
        if self.powerless:
            return f"FAIL: powerless: no change fails in the standard parametrization ({scope}): train longer or wider"
        return f"PASS: {scope}"


def verdict(
    records: Any,
    *,
    reference: Any = None,
    axis: str = "width",
    thresholds: Thresholds = Thresholds(),
    may_vanish: Callable[[str, str, int], bool] = is_attention_logits,
    resamples: int = 2000,
) -> Verdict:
    """Judge a coordinate check.

    records: a list of mappings, a mapping of columns or a DataFrame with module, `axis`, seed, t, statistic, value
        and optionally may_vanish, which marks values that can shrink, like the output of readouts at t = 0. Several
        values of one cell are averaged. The DataFrame of `mup.coord_check.get_coord_data` is also accepted.
    reference: records of the same check in the standard parametrization. If all their changes pass, the check is
        powerless. A failure before the first step shows nothing about training.
    axis: the column that grows, width or depth.
    may_vanish(module, statistic, t): values that can shrink in addition to those marked in the records; by default
        attention logits, recognised by their usual names.
    Statistics that are zero everywhere (a readout that starts at zero) are ignored.
    Raises ValueError if columns are missing, if there are too few values, too narrow a range or too few seeds, or if
    changes were recorded and all are zero.
    """
    cells, values, seeds, vanishing = _collect(records, axis)
    require_power(values, seeds, axis, thresholds)
    rows = []
    for (module, statistic, t), points in cells.items():
        if all(value == 0 for _, _, value in points):
            continue
        vanish = (module, statistic, t) in vanishing or may_vanish(module, statistic, t)
        rows.append(_row(module, statistic, t, points, values, thresholds, vanish, resamples))
    if not rows:
        raise ValueError("nothing to judge: every statistic is zero at every width. Check that the models were trained")
    if any(statistic == CHANGE for _, statistic, _ in cells) and not any(row.statistic == CHANGE for row in rows):
        raise ValueError("no evidence: no activation changed in training. Check that the learning rate is not 0")
    powerless = None
    if reference is not None:
        options: dict[str, Any] = {"axis": axis, "thresholds": thresholds, "may_vanish": may_vanish}
        found = verdict(reference, resamples=resamples, **options).rows
        powerless = all(row.ok for row in [row for row in found if row.statistic == CHANGE] or found)
    passed = all(row.ok for row in rows) and not powerless
    return Verdict(passed, rows, axis, values, len(seeds), powerless, thresholds)


Point = tuple[float, Any, float]  # (width, seed, value)
Cell = tuple[str, str, int]  # (module, statistic, t)


def as_records(records: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a list of mappings, a mapping of columns, or a DataFrame."""
    if hasattr(records, "to_dict") and hasattr(records, "columns"):
        rows: list[Mapping[str, Any]] = records.to_dict("records")
        return rows
    if isinstance(records, Mapping):
        return [dict(zip(records, row)) for row in zip(*records.values(), strict=True)]
    return list(records)


def _long(records: Any) -> Iterable[Mapping[str, Any]]:
    """Convert the DataFrame of get_coord_data, with one column per statistic, to one row per value."""
    columns = getattr(records, "columns", ())
    if "statistic" in columns or "module" not in columns:
        return as_records(records)
    statistics = [name for name in columns if name in FDICT]
    if not statistics or "seed" not in columns:
        raise ValueError(
            f"a verdict needs a column seed and a statistic out of {', '.join(FDICT)}, got the columns {list(columns)}"
        )
    return [
        {**row, "statistic": name, "value": abs(row[name])}
        for row in as_records(records)
        for name in statistics
        if row[name] == row[name]  # not NaN
    ]


def _collect(records: Any, axis: str) -> tuple[dict[Cell, list[Point]], list[float], list[Any], set[Cell]]:
    """Return points by cell, values of the axis, seeds, and the cells that can vanish according to the records."""
    sums: dict[Cell, dict[tuple[float, Any], tuple[float, int]]] = {}
    vanishing: set[Cell] = set()
    try:
        for record in _long(records):
            key = (str(record["module"]), str(record["statistic"]), int(record["t"]))
            cell = sums.setdefault(key, {})
            at = (float(record[axis]), record["seed"])
            total, count = cell.get(at, (0.0, 0))
            cell[at] = (total + float(record["value"]), count + 1)
            if record.get("may_vanish"):
                vanishing.add(key)
    except KeyError as missing:
        raise ValueError(f"a record of the coordinate check has no column {missing}") from None
    cells = {key: [(x, seed, total / n) for (x, seed), (total, n) in cell.items()] for key, cell in sums.items()}
    values = sorted({x for points in cells.values() for x, _, _ in points})
    seeds = list(dict.fromkeys(seed for points in cells.values() for _, seed, _ in points))
    return cells, values, seeds, vanishing


def require_power(
    values: Sequence[float], seeds: Sequence[Any], axis: str = "width", need: Thresholds = Thresholds()
) -> None:
    """Raise ValueError if the values of the axis, in order, or the seeds are too few for a verdict, or too close."""
    if len(values) < max(2, need.min_widths):
        raise ValueError(f"a verdict needs {need.min_widths} or more {axis}s, got {len(values)}")
    if values[0] <= 0 or values[-1] / values[0] < need.min_range:
        raise ValueError(f"a verdict needs {axis}s over a {need.min_range:g}x range or wider, got {values}")
    if len(seeds) < need.min_seeds:
        raise ValueError(f"a verdict needs {need.min_seeds} or more seeds, got {len(seeds)}")


def _row(
    module: str,
    statistic: str,
    t: int,
    points: list[Point],
    values: Sequence[float],
    need: Thresholds,
    may_vanish: bool,
    resamples: int,
) -> Row:
    def fail(reason: str) -> Row:
        return Row(module, statistic, t, math.nan, math.nan, math.nan, False, reason)

    if missing := sorted(set(values) - {x for x, _, _ in points}):
        return fail(f"not recorded at {_listed(missing)}")
    if broken := sorted({x for x, _, value in points if not math.isfinite(value)}):
        return fail(f"not finite at {_listed(broken)}")
    if zero := sorted({x for x, _, value in points if value <= 0}):
        return fail(f"zero only at {_listed(zero)}")
    slope, low, high = _fit(points, resamples)
    reason = ""
    if slope > need.max_slope and low > need.max_low:
        reason = f"grows as the power {slope:+.2f}"
    elif slope < need.min_slope and not may_vanish:
        reason = f"vanishes as the power {slope:+.2f}"
    return Row(module, statistic, t, slope, low, high, not reason, reason)


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _fit(points: list[Point], resamples: int) -> tuple[float, float, float]:
    """Fit the OLS slope of log2(value) on log2(x), with its 95 % percentile interval from resampling whole seeds."""
    import numpy as np

    seeds = list(dict.fromkeys(seed for _, seed, _ in points))
    moments = np.zeros((len(seeds), 5))  # per seed: n, sum x, sum y, sum xx, sum xy
    middle = sum(math.log2(x) for x, _, _ in points) / len(points)  # centring avoids cancellation in the sums
    for x, seed, value in points:
        u, v = math.log2(x) - middle, math.log2(value)
        moments[seeds.index(seed)] += (1.0, u, v, u * u, u * v)

    def slope(total: Any) -> Any:
        n, sx, sy, sxx, sxy = np.moveaxis(total, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (n * sxy - sx * sy) / (n * sxx - sx * sx)

    rng = np.random.default_rng(0)  # a fixed seed: a verdict depends only on its data
    counts = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples)
    drawn = slope(counts @ moments)
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return float(slope(moments.sum(axis=0))), float(low), float(high)
