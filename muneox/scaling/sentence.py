"""Sentences about a forecast, from the content of its JSON file, for the console and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muneox.output import short

_NAMES = {"params": "parameters", "params_non_embedding": "parameters without embeddings", "flops": "FLOPs"}


def place(x_name: str, target: Mapping[str, Any]) -> str:
    """Where a target is: `4.031M parameters`, `step 20,000`, `7B parameters on 140B tokens`."""
    if x_name == "step":
        return f"step {target['x']:,.0f}"
    where = f"{short(target['x'])} {_NAMES[x_name]}" if x_name in _NAMES else f"{x_name} {short(target['x'])}"
    return where if target.get("tokens") is None else f"{where} on {short(target['tokens'])} tokens"


def predicted(x_name: str, target: Mapping[str, Any]) -> str:
    """The prediction of one target, with its interval and its distance from the data."""
    shown = target.get("perplexity") or target
    digits = "{:.4g}" if "perplexity" in target else "{:.3f}"
    value, low, high = (digits.format(shown[key]) for key in ("prediction", "low", "high"))
    far = f", {target['extrapolation']:.1f} times the largest run" if target["extrapolation"] > 1 else ""
    return f"{place(x_name, target)}: {value}, {target['level']:.0%} interval {low} to {high}{far}"


def outcome(target: Mapping[str, Any]) -> str:
    """What the run at a target has reached, next to its prediction."""
    side = "inside" if target["inside"] else "OUTSIDE"
    return (
        f"actual {target['actual']:.3f}, {side} the interval; the prediction is off by {target['relative_error']:+.2%}"
    )
