"""What a figure of a forecast shows, chosen once for matplotlib and for the report's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def left_out_points(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs that were not fitted, have a finite loss, and are not what a target was compared with.

    content: a forecast's JSON (`Forecast.as_json`).
    """
    compared = {(target["x"], target.get("tokens")) for target in content["targets"] if "actual" in target}
    return [
        point
        for point in content["points"]["left_out"]
        if isinstance(point["y"], int | float) and (point["x"], point.get("tokens")) not in compared
    ]


def nearest_backtest(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the held-out predictions of one size, those of the smallest extrapolation."""
    held: Sequence[dict[str, Any]] = content["backtest"].get("held_out", [])
    best: dict[float, float] = {}
    for run in held:
        best[run["x"]] = min(best.get(run["x"], float("inf")), run["extrapolation"])
    return [run for run in held if run["extrapolation"] == best[run["x"]]]
