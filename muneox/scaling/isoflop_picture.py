"""Draws an isoFLOP sweep: the parabola of each budget, and the optimal size against FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from muneox.output import short
from muneox.scaling.forecast import Forecast
from muneox.scaling.picture import DATA, TARGET


def draw_sweep(forecast: Forecast, path: Path) -> None:
    """Write the figure of a forecast with the law isoflop. The suffix (.png, .pdf, .svg) selects the format."""
    figure = Figure(figsize=(9.6, 4.2), dpi=220, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _parabolas(left, forecast.extra["isoflop"], forecast.y_name)
    _optima(right, forecast.extra["isoflop"], forecast.extra["compute_optimal"])
    for axes, name in ((left, "parameters"), (right, "FLOPs")):
        axes.set_xscale("log")
        axes.set_xlabel(name, fontsize=9.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if axes is left else (1.0,), numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _parabolas(axes: Axes, sweep: Sequence[Mapping[str, Any]], y_name: str) -> None:
    """One colour per budget. Open points are too far from the lowest loss for the parabola."""
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(sweep)))
    for budget, colour in zip(sweep, colours):
        params, loss, near = (np.asarray(budget[key]) for key in ("params", "loss", "on_parabola"))
        label = f"{budget['flops']:.2g} FLOPs" + (", left out" if budget["problem"] else "")
        axes.plot(params[near], loss[near], "o", color=colour, ms=4, label=label)
        axes.plot(params[~near], loss[~near], "o", mfc="none", mec=colour, ms=4)
        if "parabola" in budget:
            axes.plot(budget["parabola"]["params"], budget["parabola"]["loss"], color=colour, linewidth=1)
            best = budget["optimum"]
            axes.plot(best["params"]["value"], best["loss"]["value"], "*", color=TARGET, ms=9, zorder=5)
    axes.set_ylabel(y_name, fontsize=9.5)
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")


def _optima(axes: Axes, sweep: Sequence[Mapping[str, Any]], predicted: Sequence[Mapping[str, Any]]) -> None:
    """N* of each budget with its interval, and of the budgets to predict."""
    found = [(budget["flops"], budget["optimum"]["params"]) for budget in sweep if "optimum" in budget]
    wanted = [(optimum["flops"], optimum["params"]) for optimum in predicted]
    for some, style, colour, label in ((found, "*", DATA, "minimum of a parabola"), (wanted, "D", TARGET, "predicted")):
        if some:
            flops, params = zip(*some)
            value, low, high = (np.array([p[key] for p in params]) for key in ("value", "low", "high"))
            errors = np.array([value - low, high - value])
            axes.errorbar(flops, value, yerr=errors, fmt=style, color=colour, ms=6, capsize=2.5, lw=1.1, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.set_ylabel("optimal parameters", fontsize=9.5)
    if predicted:
        best = predicted[-1]
        axes.set_title(
            f"{best['flops']:.3g} FLOPs: {short(best['params']['value'])} parameters "
            f"[{short(best['params']['low'])}, {short(best['params']['high'])}]", fontsize=9.5, loc="left",
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=8.5)
