"""Draws a forecast for a paper: data, fit, interval, targets and backtest, with relative errors in a second panel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from muneox.output import short
from muneox.scaling.figure_data import left_out_points, nearest_backtest
from muneox.scaling.forecast import Forecast
from muneox.scaling.prior import Array
from muneox.scaling.uncertainty import Interval

# Okabe and Ito's colours, which colour-blind readers can distinguish; the shapes differ too.
DATA, FIT, TARGET, BACKTEST, LEFT = "#0072B2", "#333333", "#D55E00", "#009E73", "#888888"
CURVES = (DATA, BACKTEST, "#CC79A7", "#56B4E9", "#E69F00")


def draw(forecast: Forecast, path: Path) -> None:
    """Write the figure. The suffix (.png, .pdf, .svg) selects the format."""
    figure = Figure(figsize=(6.6, 5.2), dpi=220, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    if forecast.law == "annealing":
        _curves(above, below, forecast)
    else:
        _ladder(above, forecast)
        below.set_xscale("log")
        below.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        below.xaxis.set_minor_locator(NullLocator())
    _forecasts(above, forecast)
    _errors(below, forecast)
    below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    for axes in (above, below):
        axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    below.set_xlabel(forecast.x_name, fontsize=9.5)
    figure.align_ylabels([above, below])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _ladder(axes: Axes, forecast: Forecast) -> None:
    """Draw the final losses, one point per run. For L(N, D) the colour shows the tokens."""
    largest = max(p.x for p in forecast.used)
    axes.axvline(largest, color=FIT, linewidth=0.8, linestyle=(0, (2, 3)))
    for trace in forecast.traces:
        if trace.tokens is None:
            axes.plot(trace.x, trace.y, "o", color=DATA, ms=5, label=trace.name)
            continue
        style: dict[str, Any] = {"cmap": "viridis", "norm": LogNorm(), "s": 26, "zorder": 3}
        drawn = axes.scatter(trace.x, trace.y, c=trace.tokens, label=trace.name, **style)
        bar = axes.figure.colorbar(drawn, ax=axes, pad=0.01, aspect=26, format=FuncFormatter(lambda d, _: short(d)))
        bar.set_label("tokens", fontsize=9.5)
        bar.ax.tick_params(labelsize=8.5)
        bar.ax.minorticks_off()
    if rest := left_out_points(forecast.as_json()):
        axes.plot([p["x"] for p in rest], [p["y"] for p in rest], "x", color=LEFT, ms=5.5, label="left out")


def _curves(axes: Axes, below: Axes, forecast: Forecast) -> None:
    """Draw whole loss curves with their fits, and the errors of the fits in the lower panel."""
    for trace, colour in zip(forecast.traces, cycle(CURVES)):
        axes.plot(trace.x, trace.y, ".", color=colour, ms=2.2, alpha=0.55, label=trace.name)
        axes.plot(trace.x, trace.fit, color=colour, linewidth=1)
        below.plot(trace.x, 100 * (trace.fit / trace.y - 1), color=colour, linewidth=0.7)


def _forecasts(axes: Axes, forecast: Forecast) -> None:
    """Draw bands, forecasts and observed losses."""
    for band, style in zip(forecast.bands, cycle(("-", "--", ":", "-."))):
        of = f", {band.name}" if band.name else ""
        label = f"{band.level:.0%} interval of a new run{of}"
        axes.fill_between(band.x, band.low, band.high, color=FIT, alpha=0.13, linewidth=0, label=label)
        axes.plot(
            band.x, band.median, color=FIT, linewidth=1.3, linestyle=style, label=None if of else _formula(forecast)
        )
    if forecast.targets:
        places, found = [t.x for t in forecast.targets], [t.predicted for t in forecast.targets]
        _bars(axes, places, found, np.ones(len(found)), fmt="D", color=TARGET, zorder=5, label="forecast")
        axes.set_title(_headline(forecast), fontsize=10, loc="left")
    seen = [(t.x, t.actual) for t in forecast.targets if t.actual is not None]
    if seen:
        axes.plot(*zip(*seen), "o", mfc="none", mec=DATA, mew=1.4, ms=9, zorder=6, label="actual, not fitted")
    axes.set_ylabel(forecast.y_name, fontsize=9.5)
    axes.legend(frameon=False, fontsize=8.5)


def _headline(forecast: Forecast) -> str:
    last = max(forecast.targets, key=lambda t: t.x)
    found = last.predicted
    span = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    tokens = "" if last.tokens is None else f" on {short(last.tokens)} tokens"
    beyond = f", {last.extrapolation:.1f} × beyond the fitted runs" if last.extrapolation > 1 else ""
    return f"{forecast.x_name} = {short(last.x)}{tokens}: {span}{beyond}"


def _bars(
    axes: Axes, x: Sequence[float], found: Sequence[Interval], actual: Array, relative: bool = False, **style: Any
) -> None:
    """Draw values with their intervals. relative: as relative errors from `actual`, in per cent."""
    value, low, high = (np.array([getattr(i, name) for i in found]) / actual for name in ("value", "low", "high"))
    scale, shift = (100.0, 1.0) if relative else (1.0, 0.0)
    spread = scale * np.abs([value - low, high - value])
    axes.errorbar(x, scale * (value - shift), yerr=spread, ms=4.4, capsize=2.5, linewidth=1.1, ls="none", **style)


def _formula(forecast: Forecast) -> str:
    """The fitted formula of a law in one variable."""
    a, b, c = (forecast.parameters[name].value for name in "abc")
    return f"$L = {a:.3g}\\,x^{{{b:.3f}}} + {c:.3g}$"


def _errors(axes: Axes, forecast: Forecast) -> None:
    axes.axhline(0, color=FIT, linewidth=0.8)
    for trace in forecast.traces if forecast.law != "annealing" else ():
        axes.plot(trace.x, 100 * (trace.fit / trace.y - 1), "o", color=DATA, ms=4.2, label="fit")
    if backtest := nearest_backtest(forecast.as_json()):
        actual = np.array([h["actual"] for h in backtest])
        found = [Interval(h["prediction"], h["low"], h["high"], h["level"]) for h in backtest]
        name = "backtest: from the other runs" if forecast.law == "annealing" else "backtest: from the smaller runs"
        _bars(axes, [h["x"] for h in backtest], found, actual, True, fmt="s", color=BACKTEST, label=name)
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
    axes.set_ylabel("predicted / actual − 1, %", fontsize=9.5)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98), borderaxespad=0)
