"""The report's section on the coordinate check: slopes with intervals, and the activation sizes behind them."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from muneox.report.content import DASHES, Cell, Entry, Figure, Section, Table, colour, load, number, ticks
from mup.slopes import Thresholds

MAKER = "the coordinate check (`coord-check: true`)"
NAMES = {"up": "muP", "sp": "SP"}
STATISTICS = {"mean_abs": "mean |x| at initialisation", "rms_delta": "RMS(xₜ − x₀) after {t} step{s}"}


def section(path: Path) -> Section:
    """Build the section from coord_check.<rank>.json and, if it exists, the CSV file next to it."""
    content = load(path, ("up", "sp"), MAKER)
    for short in NAMES:
        if not isinstance(content[short], Mapping) or "rows" not in content[short]:
            raise DataError(f"{path} is not what {MAKER} writes: `{short}` has no rows")
    blocks: list[Figure | Table] = [_slopes(content)]
    if (table := path.with_suffix(".csv")).is_file():
        records = _records(table)
        blocks += [_lines(records, short, content[short]["rows"]) for short in NAMES if records[short]]
    blocks.append(_table(content))
    up, sp = content["up"], content["sp"]
    failing = [row for row in up["rows"] if not row["ok"]]
    widths = ", ".join(f"{value:g}" for value in up.get("values", []))
    headline = f"{len(up['rows'])} slopes over {up.get('axis', 'width')}s {widths} with {up.get('seeds', '?')} seeds: "
    if up["passed"]:
        headline += "activations and their updates keep their size as the model widens"
    elif failing:
        worst = max(failing, key=lambda row: abs(row["slope"] or 0.0))
        headline += f"{len(failing)} fail, first of all {worst['module']} {worst['statistic']}, which {worst['reason']}"
    else:
        headline += "powerless, because the standard parametrization passes too"
    refused = sum(not row["ok"] for row in sp["rows"])
    lead = (
        "Every activation of the real model at several widths, at initialisation and after optimizer steps. In muP "
        "each slope of log₂ size against log₂ width is near 0; a mistake appears as a power of the width. The same "
        f"check on the standard parametrization must fail, and it {'fails' if refused else 'does not'}: {refused} of "
        f"{len(sp['rows'])} slopes."
    )
    return Section(
        "coordinate-check", "Coordinate check", "pass" if up["passed"] else "fail", headline, lead, tuple(blocks)
    )


def _when(statistic: str, t: int) -> str:
    return STATISTICS.get(statistic, f"{statistic}, t = {{t}}").format(t=t, s="" if t == 1 else "s")


def _slopes(content: Mapping[str, Any]) -> Figure:
    rows = [(short, row) for short in NAMES for row in content[short]["rows"]]
    whens = list(dict.fromkeys((row["statistic"], row["t"]) for _, row in rows))
    modules = list(dict.fromkeys(row["module"] or "(model)" for _, row in rows))
    data: list[dict[str, Any]] = []
    views = []
    for when in whens:
        first = len(data)
        for short, symbol in (("up", "circle"), ("sp", "x")):
            chosen = [row for s, row in rows if s == short and (row["statistic"], row["t"]) == when]
            chosen = [row for row in chosen if row["slope"] is not None]
            data.append(_slope_trace(NAMES[short], chosen, colour(0 if short == "up" else 5), symbol))
        views.append((_when(*when), tuple(range(first, len(data)))))
    limits = Thresholds(**content["up"].get("thresholds", {}))
    shapes = [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": limits.min_slope, "x1": limits.max_slope, "y0": 0, "y1": 1}
        | {"fillcolor": "$good/0.12", "line": {"width": 0}, "layer": "below"}
    ]
    layout = {
        "xaxis": {"title": {"text": "slope: power of the width"}, "zeroline": True},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": modules[::-1], "automargin": True},
        "shapes": shapes,
    }
    return Figure(
        "coord-slopes",
        "Slope of every activation's size against the width",
        f"Slopes with 95 % intervals of {len(modules)} modules, muP next to the standard parametrization; the shaded "
        f"band, {limits.min_slope} to {limits.max_slope}, passes.",
        data,
        layout,
        caption="Bars: 95 % bootstrap interval over seeds. Shaded: slopes that pass. Attention logits, and the output "
        "at initialisation, can shrink.",
        views=tuple(views),
        opened=max(0, len(views) - 1),
        toggles=(),
        height=160 + 26 * len(modules),
    )


def _slope_trace(name: str, rows: Sequence[Mapping[str, Any]], shade: str, symbol: str) -> dict[str, Any]:
    slopes = [row["slope"] for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": slopes,
        "y": [row["module"] or "(model)" for row in rows],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["slope"] for row in rows],
            "arrayminus": [row["slope"] - row["low"] for row in rows],
            "color": shade,
            "thickness": 1.5,
            "width": 3,
        },
        "marker": {"color": shade, "symbol": symbol, "size": 9},
        "customdata": [row["reason"] or "ok" for row in rows],
        "hovertemplate": f"{name} %{{y}}<br>slope %{{x:.3f}}<br>%{{customdata}}<extra></extra>",
    }


def _records(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read values by parametrization. Raises DataError for a file that the check did not write."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                cell = {"t": int(row["t"]), "width": float(row["width"]), "value": float(row["value"])}
                found[row["parametrization"]].append({**row, **cell})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the CSV of {MAKER}: {error}") from error
    return found


def _lines(records: Mapping[str, Sequence[Mapping[str, Any]]], short: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot size against width, one line per module: the geometric mean over seeds."""
    values: dict[tuple[str, int], dict[str, dict[float, list[float]]]] = {}
    for record in records[short]:
        if record["value"] > 0:
            panel = values.setdefault((record["statistic"], record["t"]), {})
            panel.setdefault(record["module"] or "(model)", {}).setdefault(record["width"], []).append(record["value"])
    failing = {(row["module"] or "(model)", row["statistic"], row["t"]) for row in rows if not row["ok"]}
    modules = list(dict.fromkeys(module for panel in values.values() for module in panel))
    data: list[dict[str, Any]] = []
    views = []
    for (statistic, t), panel in values.items():
        first = len(data)
        labelled = _apart({m: _end(points) for m, points in panel.items() if (m, statistic, t) in failing})
        for module, points in panel.items():
            bad = (module, statistic, t) in failing
            i = modules.index(module)
            passing = "$muted/0.5" if failing else colour(i)
            style = {"color": "$bad" if bad else passing, "width": 2.5 if bad else 1.6, "dash": DASHES[i // 8 % 4]}
            widths = sorted(points)
            means = [_geometric_mean(points[width]) for width in widths]
            trace: dict[str, Any] = {
                "type": "scatter",
                "mode": "lines+markers+text" if module in labelled else "lines+markers",
                "name": f"{module}{' ✗' if bad else ''}",
                "line": style,
                "showlegend": bad or not failing,
            }
            if module in labelled:
                texts = [""] * (len(points) - 1) + [module.rpartition(".")[2]]
                trace |= {"text": texts, "textposition": "top left", "textfont": {"color": "$bad"}}
            hover = f"{module}<br>width %{{x:g}}<br>%{{y:.4g}}<extra>{'fails' if bad else ''}</extra>"
            data.append({**trace, "x": widths, "y": means, "marker": {"size": 5}, "hovertemplate": hover})
        views.append((_when(statistic, t), tuple(range(first, len(data)))))
    name = NAMES[short]
    panels = list(values)
    telling = max(range(len(panels)), key=lambda i: (sum(row[1:] == panels[i] for row in failing), i), default=0)
    return Figure(
        f"coord-{short}",
        f"{name}: size of the activations against the width",
        f"{name}: sizes of {len(modules)} modules against the width; flat lines pass. Failing ones are red and thick.",
        data,
        {
            "xaxis": {"type": "log", "title": {"text": "width"}, **ticks(record["width"] for record in records[short])},
            "yaxis": {"type": "log", "title": {"text": "size"}, "dtick": "D2", "tickformat": "~g"},
        },
        views=tuple(views),
        opened=telling,
        height=560,
        half=True,
    )


def _end(points: Mapping[float, Sequence[float]]) -> float:
    """Mean size at the largest width."""
    return _geometric_mean(points[max(points)])


def _apart(ends: Mapping[str, float]) -> set[str]:
    """Lines whose labels do not overlap: each ends at a size 1.6 times below that of the label above it."""
    chosen: list[str] = []
    for module in sorted(ends, key=lambda name: ends[name], reverse=True):
        if not chosen or ends[chosen[-1]] > 1.6 * ends[module]:
            chosen.append(module)
    return set(chosen)


def _geometric_mean(values: Sequence[float]) -> float:
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def _table(content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for short, name in NAMES.items():
        for row in content[short]["rows"]:
            verdict = Cell("ok") if row["ok"] else Cell(f"fails: {row['reason']}")
            slopes = (number(row[key], "+.3f") for key in ("slope", "low", "high"))
            rows.append((name, row["module"] or "(model)", _when(row["statistic"], row["t"]), *slopes, verdict))
    head = ("parametrization", "module", "statistic", "slope", "low", "high", "verdict")
    return Table("All slopes of the coordinate check", head, rows, folded=True)
