"""The building blocks of a report section: cells, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron.errors import DataError
from megatron.files import read_json

Status = Literal["pass", "fail", "warn", "note"]

# Colours are names. The page's style sheet defines a value of each for a light and for a dark background.
SERIES = 8
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the number behind it in full precision."""

    text: str
    value: float | None = None


Entry = Cell | str


@dataclass(frozen=True)
class Table:
    """A table. rows: one Entry per column of head. folded: the reader opens the table by its caption."""

    caption: str
    head: tuple[str, ...]
    rows: list[tuple[Entry, ...]]
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """A piece of text as it is, with its line breaks."""

    caption: str
    text: str


@dataclass(frozen=True)
class Figure:
    """One interactive figure.

    data, layout: Plotly's, with colours as `$c0` or `$c0/0.2` (opacity). alt: a description of the figure. views:
    labels of a drop-down list, each with the traces that it shows; traces of no view are always visible. opened: the
    view that is shown first. half: the figure takes half of the page's width, next to another one.
    """

    name: str
    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str = ""
    views: tuple[tuple[str, tuple[int, ...]], ...] = ()
    opened: int = 0
    toggles: tuple[str, ...] = ("x", "y")
    height: int = 440
    half: bool = False


@dataclass(frozen=True)
class Section:
    """One section of the page. headline: the result in one sentence. blocks: figures and tables in order."""

    name: str
    title: str
    status: Status
    headline: str
    lead: str = ""
    blocks: tuple[Figure | Table | Text, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def load(path: Path, keys: Sequence[str], maker: str) -> dict[str, Any]:
    """Load a JSON object with these keys, else raise DataError that names the file and `maker`, the tool for it."""
    try:
        content = read_json(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: expected the file that {maker} writes ({error})") from error
    missing = [key for key in keys if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise DataError(f"{path} is not what {maker} writes: it has no `{missing[0]}`")
    return dict(content)


_LABELS = {
    "params": "parameters",
    "params_non_embedding": "parameters without embeddings",
    "flops": "training compute [FLOPs]",
    "valid/loss": "validation loss [nats per token]",
    "train/loss": "training loss [nats per token]",
    "test/loss": "test loss [nats per token]",
}


def label(name: str) -> str:
    """A name of a metric or of a size in plain words, with its unit where that is known."""
    return _LABELS.get(name, name)


def number(value: float | None, form: str = ".4g") -> Cell:
    """Format a number as a cell; a dash for None and for numbers that are not finite."""
    if value is None or not math.isfinite(value):
        return Cell("–")
    return Cell(format(value, form), float(value))


def colour(i: int) -> str:
    return f"$c{i % SERIES}"


def ticks(values: Iterable[float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis at these values. Values that are all powers of two below 1 are labelled as powers."""
    places = sorted(set(values))
    exact = [math.log2(place) for place in places if place > 0]
    if places and places[-1] < 1 and all(power == round(power) for power in exact):
        texts = [f"2<sup>−{-power:.0f}</sup>" for power in exact]
    else:
        texts = [f"{place:.4g}" for place in places]
    return {"tickvals": places, "ticktext": texts}
