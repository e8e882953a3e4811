"""Selects the points that a forecast's figure shows, for matplotlib and for the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def left_out_points(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs with a finite loss that were neither fitted nor compared with a target.

    content: a forecast's JSON (`Forecast.as_json`).
    """
    compared = {(target["x"], target.get("tokens")) for target in content["targets"] if "actual" in target}
    return [
        point
        for point in content["points"]["left_out"]
        if isinstance(point["y"], int | float) and (point["x"], point.get("tokens")) not in compared
    ]


def nearest_backtest(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each size, the held-out predictions with the smallest extrapolation. content: a forecast's JSON."""
    held_out: Sequence[dict[str, Any]] = content["backtest"].get("held_out", [])
    best: dict[float, float] = {}
    for run in held_out:
        best[run["x"]] = min(best.get(run["x"], float("inf")), run["extrapolation"])
    return [run for run in held_out if run["extrapolation"] == best[run["x"]]]
