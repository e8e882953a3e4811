"""Plots of coordinate checks. matplotlib is imported only when a plot is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mup.bsh import StrPath
from mup.slopes import Verdict, as_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_coord_data", "plot_verdict"]


def plot_verdict(
    records: Any, verdict: Verdict, path: StrPath | None = None, title: str = "", axis: str = "width"
) -> Any:
    """Plot one log-log panel per statistic and step, with one line per module: the geometric mean over seeds.

    Failing modules are thick red lines, with their slope in the legend.
    path: file to save the figure to; the suffix determines the format.
    Returns the matplotlib Figure. Raises ImportError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: run pip install matplotlib") from error
    panels = _panels(records, axis)
    figure = Figure(figsize=(max(5.0 * len(panels), 6.0), 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    if title or verdict.rows:
        figure.suptitle(f"{title}\n{verdict.summary()}".strip(), fontsize=10)
    for place, ((statistic, t), lines) in enumerate(panels.items(), 1):
        _draw(figure.add_subplot(1, len(panels), place), statistic, t, lines, verdict, axis)
    if path is not None:
        figure.savefig(str(path), dpi=120)
    return figure


Line = list[tuple[float, float]]


def _panels(records: Any, axis: str) -> dict[tuple[str, int], dict[str, Line]]:
    logs: dict[tuple[str, int], dict[str, dict[float, list[float]]]] = {}
    for record in as_records(records):
        value = float(record["value"])
        if value > 0 and math.isfinite(value):
            panel = logs.setdefault((str(record["statistic"]), int(record["t"])), {})
            panel.setdefault(str(record["module"]), {}).setdefault(float(record[axis]), []).append(math.log2(value))
    return {
        key: {
            module: [(x, 2.0 ** (sum(line[x]) / len(line[x]))) for x in sorted(line)] for module, line in panel.items()
        }
        for key, panel in logs.items()
    }


_TITLES = {"mean_abs": "mean |x| at initialisation", "rms_delta": "RMS(x_t - x_0) after t = {t} steps"}


def _draw(ax: Axes, statistic: str, t: int, lines: dict[str, Line], verdict: Verdict, axis: str) -> None:
    import matplotlib

    failing = {row.module: row for row in verdict.failures if (row.statistic, row.t) == (statistic, t)}
    colours = matplotlib.colormaps["tab20"]
    for i, (module, line) in enumerate(lines.items()):
        x, y = zip(*line)
        bad = failing.get(module)
        if bad is None:
            label = module if len(lines) <= 20 else None  # a legend of hundreds of names would hide the plot
            ax.plot(x, y, color=colours(i % 20), linewidth=1.5, marker=".", label=label)
        else:
            label = f"FAIL {module} {bad.slope:+.2f}"
            ax.plot(x, y, color="red", linewidth=2.5, marker="ovs^Dpx*"[i % 8], label=label, zorder=3)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    widths = sorted({x for line in lines.values() for x, _ in line})
    ax.set_xticks(widths, [f"{x:g}" for x in widths])
    _widen(ax, widths[-1] / widths[0])
    ax.set_title(_TITLES.get(statistic, f"{statistic}, t = {t}").format(t=t), color="red" if failing else "black")
    ax.set_xlabel(axis)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)


def _widen(ax: Axes, ratio: float) -> None:
    """Let the y axis cover at least `ratio`, as the x axis does: a slope of 0.1 then looks small in every panel."""
    low, high = ax.get_ylim()
    missing = (ratio / (high / low)) ** 0.5
    if missing > 1:
        ax.set_ylim(low / missing, high * missing)


def plot_coord_data(
    df: Any,
    y: str = "l1",
    save_to: StrPath | None = None,
    suptitle: str | None = None,
    x: str = "width",
    hue: str = "module",
    legend: str | bool | None = "full",
    name_contains: str | None = None,
    name_not_contains: str | None = None,
    loglog: bool = True,
    logbase: float = 2,
    face_color: str | None = None,
) -> Any:
    """Plot the DataFrame of get_coord_data: one panel per step, one line per module with its range over seeds.

    y, x, hue: columns. save_to: file to save the figure to.
    legend: "full", "brief" or "auto" (at most 20 names), or False.
    name_contains, name_not_contains: regular expressions for the name of the module.
    Returns the matplotlib figure.
    """
    import matplotlib
    from matplotlib import pyplot as plt

    df = df[df["module"] != ""]  # the root of an nn.Sequential repeats its last layer
    if name_contains is not None:
        df = df[df["module"].str.contains(name_contains)]
    elif name_not_contains is not None:
        df = df[~df["module"].str.contains(name_not_contains)]
    steps = sorted(df["t"].unique())
    figure, axes = plt.subplots(1, max(len(steps), 1), figsize=(5 * max(len(steps), 1), 4), squeeze=False)
    if face_color is not None:
        figure.patch.set_facecolor(face_color)
    colours = matplotlib.colormaps["viridis"]
    names = list(dict.fromkeys(df[hue]))
    for ax, t in zip(axes[0], steps, strict=True):
        for i, name in enumerate(names):
            by_x = df[(df["t"] == t) & (df[hue] == name)].groupby(x)[y]
            mean, low, high = by_x.mean(), by_x.min(), by_x.max()
            colour = colours(i / max(len(names) - 1, 1))
            ax.plot(mean.index, mean.values, color=colour, label=str(name))
            ax.fill_between(mean.index, low.values, high.values, color=colour, alpha=0.15)
        ax.set_title(f"t={t}")
        ax.set_xlabel(x)
        if loglog:
            ax.set_xscale("log", base=logbase)
            ax.set_yscale("log", base=logbase)
    if steps:
        axes[0][0].set_ylabel(y)
        if legend and (legend == "full" or len(names) <= 20):
            axes[0][0].legend(fontsize=7)
    if suptitle:
        figure.suptitle(suptitle)
    figure.tight_layout(rect=(0, 0.03, 1, 0.95))
    if save_to is not None:
        figure.savefig(str(save_to))
        print(f"coordinate check plot saved to {save_to}")
    return figure
