"""Helpers of the muP tools' figures: matplotlib without a display, and colours by width."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from muneox.output import write_atomically


def new_figure(columns: int, rows: int = 1, width: float = 6.0, height: float = 4.6) -> tuple[Figure, list[Any]]:
    """Create a figure. Returns it with its axes in reading order; the axes of a row share y."""
    figure = Figure(figsize=(max(width * columns, 7.0), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row")
    return figure, list(axes.flat)


def width_colours(widths: Sequence[int]) -> dict[int, Any]:
    """Colours from dark (narrow) to bright (wide), distinguishable without colour vision."""
    shades = colormaps["viridis"]
    ordered = sorted(set(widths))
    return {width: shades(0.9 * i / max(len(ordered) - 1, 1)) for i, width in enumerate(ordered)}


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
