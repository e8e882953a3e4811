"""Compares sizes with and without embeddings: which of them a ladder follows differs between families of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron.errors import ConfigError, DataError
from muneox.scaling.backtest import backtest, mean_error
from muneox.scaling.forecast import Forecast
from muneox.scaling.ladder import Selection, finite, read_points

OTHERS = {
    "params": ("params_non_embedding", "params_ne"),
    "params_non_embedding": ("params",),
    "params_ne": ("params",),
}
CLEARLY = 0.5  # the other size's error as a share of this one's
FEWEST = 3  # held-out runs


def better_size(sources: Sequence[str], chosen: Selection, forecast: Forecast) -> list[str]:
    """A warning if the backtest has at most half the error with the other count of parameters; else empty.

    Only local sources are read a second time. forecast: made with `chosen` from all its runs; otherwise the two
    backtests would not be of the same runs, and the result is empty.
    """
    local = all(Path(source).exists() for source in sources)
    if chosen.x not in OTHERS or forecast.left_out or not local or len(forecast.held_out) < FEWEST:
        return []
    here = mean_error(forecast.held_out)
    for other in OTHERS[chosen.x]:
        try:
            points, _ = finite(read_points(sources, replace(chosen, x=other))[0], drop=True)
            there = mean_error(backtest([p.x for p in points], [p.y for p in points]))
        except (ConfigError, DataError):  # the runs do not have it
            continue
        if there <= CLEARLY * here:
            return [
                f"the backtest has a mean error of {there:.2%} with --x {other}, and of {here:.2%} with --x "
                f"{chosen.x}: use --x {other}, with the target's size counted the same way"
            ]
    return []
