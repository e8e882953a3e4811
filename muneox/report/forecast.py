"""The report's section on the ladder and its forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muneox.output import short
from muneox.report.content import Cell, Entry, Figure, Section, Status, Table, colour, label, load, number
from muneox.scaling.figure_data import left_out_points, nearest_backtest
from muneox.scaling.sentence import outcome, predicted

MAKER = "tools/scaling/predict_loss.py --json"
ORDER: tuple[Status, ...] = ("fail", "warn", "pass", "note")
MOST_OUTSIDE = 0.3  # share of held-out runs outside a 90 % interval from which the badge warns
LEAD = (
    "A ladder of smaller runs, the law fitted to it, and its predictions for larger runs. Each prediction has an "
    "interval, its distance beyond the data, and the errors of the same method on held-out runs."
)


def section(paths: Sequence[Path]) -> Section:
    """Build the section from one or more JSON files of predict_loss.py, for example of muP and of SP."""
    contents = [load(path, ("targets", "parameters", "backtest", "points", "warnings"), MAKER) for path in paths]
    names = [path.stem for path in paths] if len(paths) > 1 else [""]
    blocks: list[Figure | Table] = []
    headlines: list[str] = []
    warnings: list[str] = []
    statuses = [_status(content) for content in contents]
    for name, content in zip(names, contents):
        prefix = f"{name}: " if name else ""
        headlines.append(prefix + _headline(content))
        warnings += [prefix + text for text in content["warnings"]]
        blocks += [_ladder(name, content), _targets(prefix, content), _parameters(prefix, content)]
        blocks += [_backtest(prefix, content)] if content["backtest"].get("held_out") else []
        blocks.append(_points(prefix, content))
    status: Status = next((status for status in ORDER if status in statuses), "note")
    headline = ". ".join(headlines)
    return Section("forecast", "Forecast", status, headline, LEAD, tuple(blocks), tuple(warnings))


def _status(content: Mapping[str, Any]) -> Status:
    """Fail: a target is outside its interval. Warn: more held-out runs are outside theirs than chance explains."""
    known = [target["inside"] for target in content["targets"] if "inside" in target]
    if known:
        return "pass" if all(known) else "fail"
    held_out = content["backtest"].get("held_out", [])
    outside = sum(not run["inside"] for run in held_out)
    return "warn" if outside > max(1, MOST_OUTSIDE * len(held_out)) else "note"


def _headline(content: Mapping[str, Any]) -> str:
    if not content["targets"]:
        return f"{content.get('formula', 'a law')} fitted to {len(content['points']['used'])} runs"
    target = content["targets"][-1]
    headline = predicted(content.get("x", "x"), target)
    if "actual" in target:
        headline += f"; {outcome(target)}"
    return headline


def _ladder(name: str, content: Mapping[str, Any]) -> Figure:
    points, targets = content["points"], content["targets"]
    x, y = content.get("x", "x"), content.get("y", "loss")
    bands = content.get("bands", [])
    data = [
        *(trace for band in bands for trace in _band(band)),
        _runs("fitted runs", points["used"], colour(0), "circle"),
    ]
    seen = [target for target in targets if "actual" in target]
    rest = left_out_points(content)
    if rest:
        data.append(_runs("left out", rest, "$muted", "x"))
    if held_out := nearest_backtest(content):
        data.append(_intervals("backtest, held out", held_out, colour(2), "square-open"))
    if targets:
        data.append(_intervals("forecast", targets, colour(5), "diamond"))
    if seen:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "actual",
                "x": [target["x"] for target in seen],
                "y": [target["actual"] for target in seen],
                "marker": {"symbol": "star", "size": 12, "color": "$text"},
                "hovertemplate": f"actual<br>{x} %{{x:.4s}}<br>{y} %{{y:.4f}}<extra></extra>",
            }
        )
    steps = content.get("law") == "annealing"
    axis = {"title": {"text": label(x)}, "tickformat": "~s"} | ({} if steps else {"type": "log", "dtick": "D2"})
    title = f"{name}: {content.get('formula', 'ladder')}" if name else str(content.get("formula", "ladder"))
    return Figure(
        f"ladder-{name}" if name else "ladder",
        title,
        f"{y} against {x}: {len(points['used'])} fitted runs, {len(rest)} left out, {len(targets)} forecasts with "
        f"intervals. {_headline(content)}.",
        data,
        {"xaxis": axis, "yaxis": {"title": {"text": label(y)}}},
        caption=_caption(content),
        height=520,
    )


def _caption(content: Mapping[str, Any]) -> str:
    """A legend of the figure, what such forecasts were worth, and the prior of the intervals."""
    drawn = "Line and area: median and interval of a new run. " * bool(content.get("bands"))
    prior = content.get("prior")
    known = content.get("track_record")
    record = f" {known[0].upper()}{known[1:]}." if known else ""
    return f"{drawn}Bars: intervals of a new run.{record}" + (f" Prior: {prior}." if prior else "")


def _band(band: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The interval of a new run along the ladder as an area, and its median as a line."""
    of = f", {band['name']}" if band["name"] else ""
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    area = {
        "name": f"{band['level']:.0%} interval of a new run{of}",
        "x": [*band["x"], *reversed(band["x"])],
        "y": [*band["low"], *reversed(band["high"])],
        "fill": "toself",
        "fillcolor": "$muted/0.25",
        "line": {"width": 0},
    }
    middle = {"name": f"median{of}", "x": band["x"], "y": band["median"], "line": {"color": "$text", "width": 1.5}}
    return [line | area, line | middle]


def _runs(name: str, points: Sequence[Mapping[str, Any]], shade: str, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point["x"] for point in points],
        "y": [point["y"] for point in points],
        "marker": {"color": shade, "symbol": symbol, "size": 10},
        "customdata": [[point["name"], point.get("reason", name), _tokens(point)] for point in points],
        "hovertemplate": "%{customdata[0]}<br>%{x:.4s}%{customdata[2]}<br>%{y:.4f}<br>%{customdata[1]}<extra></extra>",
    }


def _tokens(point: Mapping[str, Any]) -> str:
    return f", {short(point['tokens'])} tokens" if "tokens" in point else ""


def _intervals(name: str, found: Sequence[Mapping[str, Any]], shade: str, symbol: str) -> dict[str, Any]:
    error = {
        "type": "data",
        "symmetric": False,
        "array": [one["high"] - one["prediction"] for one in found],
        "arrayminus": [one["prediction"] - one["low"] for one in found],
        "color": shade,
        "thickness": 2,
        "width": 6,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [one["x"] for one in found],
        "y": [one["prediction"] for one in found],
        "error_y": error,
        "marker": {"color": shade, "symbol": symbol, "size": 11},
        "customdata": [[one["low"], one["high"], one["extrapolation"]] for one in found],
        "hovertemplate": f"{name}<br>%{{x:.4s}}<br>%{{y:.4f}}, %{{customdata[0]:.4f}} to %{{customdata[1]:.4f}}<br>"
        "%{customdata[2]:.2g} times beyond the data<extra></extra>",
    }


def _targets(prefix: str, content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for target in content["targets"]:
        actual, error = target.get("actual"), target.get("relative_error")
        inside = "" if "inside" not in target else "inside" if target["inside"] else "outside"
        rows.append(
            (
                Cell(short(target["x"]), target["x"]),
                *([Cell(short(target["tokens"]), target["tokens"])] if "tokens" in target else []),
                *(number(target[key], ".4f") for key in ("prediction", "low", "high")),
                number(target["level"], ".0%"),
                Cell(f"{target['extrapolation']:.3g} ×", target["extrapolation"]),
                number(actual, ".4f"),
                number(error, "+.2%"),
                inside,
            )
        )
    tokens = ("tokens",) if any("tokens" in target for target in content["targets"]) else ()
    columns = ("prediction", "low", "high", "level", "beyond the data", "actual", "error", "interval")
    return Table(f"{prefix}Forecast", (label(content.get("x", "x")), *tokens, *columns), rows)


def _parameters(prefix: str, content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = [
        (name, *(number(found.get(key), ".5g") for key in ("value", "low", "high")), number(found.get("level"), ".0%"))
        for name, found in content["parameters"].items()
    ]
    return Table(f"{prefix}Parameters of the law", ("parameter", "value", "low", "high", "level"), rows)


def _backtest(prefix: str, content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = [
        (
            number(run["fitted_sizes"], ".0f"),
            Cell(short(run["x"]), run["x"]),
            *(number(run[key], ".4f") for key in ("prediction", "low", "high", "actual")),
            number(run["relative_error"], "+.2%"),
            "inside" if run["inside"] else "outside",
        )
        for run in content["backtest"]["held_out"]
    ]
    head = ("sizes fitted", label(content.get("x", "x")), "prediction", "low", "high", "actual", "error", "interval")
    return Table(f"{prefix}Backtest: larger runs held out", head, rows, folded=True)


def _points(prefix: str, content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for part, use in (("used", "fitted"), ("left_out", "left out")):
        for point in content["points"][part]:
            y = number(point["y"], ".4f") if isinstance(point["y"], int | float) else Cell(str(point["y"]))
            why = point.get("reason", "")
            rows.append((point["name"], Cell(short(point["x"]), point["x"]), y, f"{use}: {why}" if why else use))
    return Table(
        f"{prefix}Runs of the ladder",
        ("run", label(content.get("x", "x")), label(content.get("y", "loss")), "use"),
        rows,
        folded=True,
    )
