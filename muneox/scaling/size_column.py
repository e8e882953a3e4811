"""Compares sizes with and without embeddings: which of them a ladder follows differs between families of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron.errors import ConfigError, DataError
from muneox.scaling.backtest import backtest, mean_error
from muneox.scaling.ladder import Point, Selection, finite, read_points

OTHERS = {
    "params": ("params_non_embedding", "params_ne"),
    "params_non_embedding": ("params",),
    "params_ne": ("params",),
}
CLEARLY = 0.5  # the other size's error as a share of this one's
FEWEST = 3  # held-out runs


def better_size(sources: Sequence[str], chosen: Selection, points: Sequence[Point]) -> list[str]:
    """A warning if the backtest has at most half the error with the other count of parameters; else empty.

    Only local sources are read a second time. points: the runs as read with `chosen`.
    """
    if chosen.x not in OTHERS or not all(Path(source).exists() for source in sources):
        return []
    here = _error(points)
    for other in OTHERS[chosen.x]:
        try:
            there = _error(finite(read_points(sources, replace(chosen, x=other))[0], drop=True)[0])
        except (ConfigError, DataError):  # the runs do not have it
            continue
        if here is not None and there is not None and there <= CLEARLY * here:
            return [
                f"the backtest has a mean error of {there:.2%} with --x {other}, and of {here:.2%} with --x "
                f"{chosen.x}: use --x {other}, with the target's size counted the same way"
            ]
    return []


def _error(points: Sequence[Point]) -> float | None:
    try:
        held_out = backtest([p.x for p in points], [p.y for p in points], draws=1000)
    except DataError:
        return None
    return mean_error(held_out) if len(held_out) >= FEWEST else None
