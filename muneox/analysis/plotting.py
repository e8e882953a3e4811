"""What the pictures of tools/mup share: matplotlib without a display, and the colours of widths."""

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
    """A figure, and its axes in reading order, sharing x within and y across columns."""
    figure = Figure(figsize=(max(width * columns, 7.0), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row")
    return figure, list(axes.flat)


def width_colours(widths: Sequence[int]) -> dict[int, Any]:
    """Dark for narrow to bright for wide, told apart without colour vision too."""
    shades = colormaps["viridis"]
    ordered = sorted(set(widths))
    return {width: shades(0.9 * i / max(len(ordered) - 1, 1)) for i, width in enumerate(ordered)}


def save(figure: Figure, path: Path) -> None:
    """As PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
