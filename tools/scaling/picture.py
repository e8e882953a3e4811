"""The forecast as a figure for a paper: data, fit, interval, targets, backtest; below it the errors in per cent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from megatron.errors import ConfigError
from tools.scaling.backtest import Held
from tools.scaling.forecast import Forecast
from tools.scaling.power_law import PowerLawPosterior
from tools.scaling.separable import Array
from tools.scaling.uncertainty import LEVEL, Interval

# Okabe and Ito's colours, which the colour-blind tell apart; the shapes differ too.
DATA, FIT, TARGET, BACKTEST, LEFT = "#0072B2", "#333333", "#D55E00", "#009E73", "#888888"


def draw(forecast: Forecast, path: Path) -> None:
    """Writes the figure; the suffix (.png, .pdf, .svg) says the format. Raises ConfigError for a law of two variables
    or of whole curves."""
    if forecast.posterior is None:
        raise ConfigError(f"--plot draws laws of one variable, not {forecast.formula}")
    figure = Figure(figsize=(6.6, 5.2), dpi=220, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    _ladder(above, forecast, forecast.posterior)
    _errors(below, forecast, forecast.posterior)
    for axes in (above, below):
        axes.set_xscale("log")
        axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    below.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    below.xaxis.set_minor_locator(NullLocator())
    below.set_xlabel(forecast.x_name, fontsize=9.5)
    figure.align_ylabels([above, below])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def short(x: float) -> str:
    """6.7e9 as 6.7B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if unit <= x < 1e15:
            return f"{x / unit:.4g}{name}"
    return f"{x:.6g}" if x < 1e6 else f"{x:.3g}"


def _ladder(axes: Axes, forecast: Forecast, posterior: PowerLawPosterior) -> None:
    level = forecast.targets[0].predicted.level if forecast.targets else LEVEL
    largest = max(p.x for p in forecast.used)
    x = np.geomspace(
        min(p.x for p in forecast.used) / 1.15, 1.15 * max([largest, *(t.x for t in forecast.targets)]), 160
    )
    low, high = np.quantile(posterior.observe(x), [(1 - level) / 2, (1 + level) / 2], axis=0)
    band = f"{level:.0%} interval of a new run"
    axes.fill_between(x, _smooth(low), _smooth(high), color=FIT, alpha=0.13, linewidth=0, label=band)
    axes.plot(x, np.median(posterior.law(x), axis=0), color=FIT, linewidth=1.3, label=_formula(forecast))
    axes.axvline(largest, color=FIT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.plot([p.x for p in forecast.used], [p.y for p in forecast.used], "o", color=DATA, ms=5, label="fitted runs")
    known = {t.x for t in forecast.targets if t.actual is not None}
    rest = [p for p, _ in forecast.left_out if p.x not in known and np.isfinite(p.y)]
    if rest:
        axes.plot([p.x for p in rest], [p.y for p in rest], "x", color=LEFT, ms=5.5, label="left out")
    if forecast.targets:
        places, found = [t.x for t in forecast.targets], [t.predicted for t in forecast.targets]
        _bars(axes, places, found, np.ones(len(found)), fmt="D", color=TARGET, label="forecast")
        axes.set_title(_headline(forecast), fontsize=10, loc="left")
    seen = [(t.x, t.actual) for t in forecast.targets if t.actual is not None]
    if seen:
        axes.plot(*zip(*seen), "o", mfc="none", mec=DATA, mew=1.4, ms=9, zorder=4, label="seen, not fitted")
    axes.set_ylabel(forecast.y_name, fontsize=9.5)
    axes.legend(frameon=False, fontsize=8.5)


def _headline(forecast: Forecast) -> str:
    last = max(forecast.targets, key=lambda t: t.x)
    found = last.predicted
    span = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return f"{forecast.x_name} = {short(last.x)}: {span}, {last.extrapolation:.1f} times beyond the fitted runs"


def _bars(
    axes: Axes, x: Sequence[float], found: Sequence[Interval], actual: Array, relative: bool = False, **style: Any
) -> None:
    """Values with their intervals; relative: in per cent of what was seen, minus 100."""
    value, low, high = (np.array([getattr(i, name) for i in found]) / actual for name in ("value", "low", "high"))
    scale, shift = (100.0, 1.0) if relative else (1.0, 0.0)
    spread = scale * np.abs([value - low, high - value])
    axes.errorbar(x, scale * (value - shift), yerr=spread, ms=4.4, capsize=2.5, linewidth=1.1, ls="none", **style)


def _smooth(edge: Array) -> Array:
    """Takes the sampling noise out of a quantile's curve."""
    grid = np.linspace(-1, 1, len(edge))
    return np.asarray(np.polynomial.Chebyshev.fit(grid, edge, 8)(grid))


def _formula(forecast: Forecast) -> str:
    a, b, c = (forecast.parameters[name].value for name in "abc")
    return f"$L = {a:.3g}\\,x^{{{b:.3f}}} + {c:.3g}$"


def _errors(axes: Axes, forecast: Forecast, posterior: PowerLawPosterior) -> None:
    axes.axhline(0, color=FIT, linewidth=0.8)
    x, y = np.array([p.x for p in forecast.used]), np.array([p.y for p in forecast.used])
    axes.plot(x, 100 * (np.median(posterior.law(x), axis=0) / y - 1), "o", color=DATA, ms=4.2, label="fit")
    if held := _nearest(forecast.held):
        actual = np.array([h.actual for h in held])
        found = [h.predicted for h in held]
        name = "backtest: from the smaller runs"
        _bars(axes, [h.x for h in held], found, actual, True, fmt="s", color=BACKTEST, label=name)
    if seen := [t for t in forecast.targets if t.actual is not None]:
        actual = np.array([t.actual for t in seen])
        _bars(
            axes,
            [t.x for t in seen],
            [t.predicted for t in seen],
            actual,
            True,
            fmt="D",
            color=TARGET,
            label="forecast",
        )
    axes.set_ylabel("predicted / seen − 1, %", fontsize=9.5)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98), borderaxespad=0)


def _nearest(held: Sequence[Held]) -> list[Held]:
    """Of the predictions of one size, those of the smallest extrapolation."""
    best: dict[float, float] = {}
    for h in held:
        best[h.x] = min(best.get(h.x, np.inf), h.extrapolation)
    return [h for h in held if h.extrapolation == best[h.x]]
