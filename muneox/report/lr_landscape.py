"""The report's section on the learning-rate landscape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muneox.report.content import SYMBOLS, Entry, Figure, Section, Status, Table, colour, load, number, ticks

MAKER = "tools/mup/lr_landscape.py"
LEAD = (
    "Final loss against learning rate, one line per width. In muP a narrow and a wide model have the same best "
    "learning rate; in the standard parametrization (SP) it falls as the model widens. Stars: minima of a parabola "
    "through the points around the best, with 95 % intervals from seed noise; hollow stars lie at the edge of the "
    "rates that were tried."
)


def section(path: Path) -> Section:
    """Build the section from the JSON of lr_landscape.py."""
    content = load(path, ("points", "basins", "drifts", "metric", "step", "passed", "loss_range"), MAKER)
    drifts = content["drifts"]
    status: Status = "note" if content["passed"] is None else "pass" if content["passed"] else "fail"
    headline = "The best learning rate moves, per doubling of the width: " + "; ".join(map(_short, drifts))
    lead = LEAD + "".join(f" {drift['verdict']}." for drift in drifts)
    names = list(dict.fromkeys(point["parametrization"] for point in content["points"]))
    figures = [_figure(content, name) for name in names]
    blocks: tuple[Figure | Table, ...] = (*figures, _minima(content), _points(content))
    return Section(
        "lr-landscape", "Learning-rate landscape", status, headline, lead, blocks, tuple(content.get("warnings", ()))
    )


def _short(drift: Mapping[str, Any]) -> str:
    if drift["slope"] is None:
        return f"{drift['parametrization']} cannot be determined"
    within = "" if drift["low"] is None else f" ({drift['low']:+.2f} to {drift['high']:+.2f})"
    return f"{drift['parametrization']} {drift['slope']:+.2f} octaves{within}"


def _figure(content: Mapping[str, Any], name: str) -> Figure:
    points = [point for point in content["points"] if point["parametrization"] == name]
    widths = sorted({point["width"] for point in content["points"]})
    low, high = content["loss_range"]
    margin = 0.08 * (high - low)
    data: list[dict[str, Any]] = []
    for width in sorted({point["width"] for point in points}):
        i = widths.index(width)
        mine = [point for point in points if point["width"] == width]
        basin = next(b for b in content["basins"] if (b["parametrization"], b["width"]) == (name, width))
        data += _width_traces(mine, basin, i, high + margin)
    drift = next(drift for drift in content["drifts"] if drift["parametrization"] == name)
    layout = {
        "xaxis": {"type": "log", "title": {"text": "learning rate"}, **ticks(point["lr"] for point in points)},
        "yaxis": {
            "title": {"text": f"{content['metric']} at step {content['step']}"},
            "range": [low - margin, high + 2 * margin],
        },
    }
    return Figure(
        f"landscape-{name.lower()}",
        f"{name}: {drift['summary']}",
        f"{name}: {content['metric']} at step {content['step']} against the learning rate for widths "
        f"{', '.join(map(str, widths))}. {drift['verdict']}.",
        data,
        layout,
        caption="Small points: single runs. Crosses at the top: runs that diverged or stopped.",
        half=True,
    )


def _width_traces(
    points: Sequence[Mapping[str, Any]], basin: Mapping[str, Any], i: int, top: float
) -> list[dict[str, Any]]:
    shade, width = colour(i), points[0]["width"]
    good = [point for point in points if point["status"] == "ok"]
    bad = [point for point in points if point["status"] != "ok"]
    by_lr: dict[float, list[float]] = defaultdict(list)
    for point in good:
        by_lr[point["lr"]].append(point["loss"])
    rates = sorted(by_lr)
    group = {"type": "scatter", "legendgroup": str(width), "showlegend": False}
    return [
        {
            **group,
            "mode": "lines+markers",
            "name": f"width {width}",
            "showlegend": True,
            "x": rates,
            "y": [sum(by_lr[lr]) / len(by_lr[lr]) for lr in rates],
            "line": {"color": shade, "width": 2},
            "marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7, "color": shade},
            "customdata": [len(by_lr[lr]) for lr in rates],
            "hovertemplate": f"width {width}<br>lr %{{x:.4g}}<br>%{{y:.4f}}, mean of %{{customdata}}<extra></extra>",
        },
        {
            **group,
            "mode": "markers",
            "x": [point["lr"] for point in good],
            "y": [point["loss"] for point in good],
            "marker": {"size": 5, "color": f"{shade}/0.55"},
            "customdata": [point["run"] for point in good],
            "hovertemplate": "%{customdata}<br>lr %{x:.4g}<br>loss %{y:.4f}<extra></extra>",
        },
        {
            **group,
            "mode": "markers",
            "x": [point["lr"] for point in bad],
            "y": [top for _ in bad],
            "marker": {"symbol": "x", "size": 9, "color": shade},
            "cliponaxis": False,
            "customdata": [[point["run"], point["status"], point["note"]] for point in bad],
            "hovertemplate": "%{customdata[0]}<br>lr %{x:.4g}<br>%{customdata[1]}: %{customdata[2]}<extra></extra>",
        },
        _star(basin, shade, group),
    ]


def _star(basin: Mapping[str, Any], shade: str, group: Mapping[str, Any]) -> dict[str, Any]:
    best = 2.0 ** basin["log2_lr"]
    trace: dict[str, Any] = {
        **group,
        "mode": "markers",
        "x": [best],
        "y": [basin["loss"]],
        "marker": {"symbol": "star", "size": 15, "color": "$card" if basin["edge"] else shade}
        | {"line": {"color": shade if basin["edge"] else "$text", "width": 2 if basin["edge"] else 1}},
        "hovertemplate": f"minimum of width {basin['width']}<br>lr %{{x:.4g}}<br>loss %{{y:.4f}}<extra></extra>",
    }
    if basin["low"] is not None:
        reach = {"array": [2.0 ** basin["high"] - best], "arrayminus": [best - 2.0 ** basin["low"]]}
        trace["error_x"] = {"type": "data", "symmetric": False, "color": shade, "thickness": 2, "width": 5, **reach}
    return trace


def _minima(content: Mapping[str, Any]) -> Table:
    head = (
        "parametrization",
        "width",
        "best lr tried",
        "minimum, log₂ lr",
        "low",
        "high",
        "loss there",
        "seeds",
        "edge",
    )
    rows: list[tuple[Entry, ...]] = [
        (
            basin["parametrization"],
            number(basin["width"], ".0f"),
            number(basin["best_lr"]),
            *(number(basin[key], "+.2f") for key in ("log2_lr", "low", "high")),
            number(basin["loss"], ".4f"),
            number(basin["seeds"], ".0f"),
            basin["edge"] or "inside",
        )
        for basin in content["basins"]
    ]
    return Table("Minima by width", head, rows)


def _points(content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = [
        (
            point["run"],
            point["parametrization"],
            number(point["width"], ".0f"),
            number(point["lr"]),
            number(point["seed"], "g"),
            number(point["loss"], ".4f"),
            point["status"],
        )
        for point in content["points"]
    ]
    return Table(
        "All runs of the landscape",
        ("run", "parametrization", "width", "lr", "seed", "loss", "status"),
        rows,
        folded=True,
    )
