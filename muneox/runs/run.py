"""A training run as the tools see it: what it was told to do, and what it logged."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron.errors import DataError

State = Literal["finished", "running", "crashed", "unknown"]

# Where muNeoX's header keeps a number; the model's own dimensions count before the configuration's.
SECTIONS = ("model", "config", "mup")


@dataclass(frozen=True)
class Series:
    """One metric of a run. steps: int64[n], strictly increasing; values: float64[n], NaN and infinity kept."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def of(cls, steps: Sequence[int] | NDArray[Any], values: Sequence[float] | NDArray[Any]) -> Series:
        """Sorted by step; of several values at a step the last counts."""
        step, value = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
        if len(step) > 1 and not np.all(step[1:] > step[:-1]):
            order = np.argsort(step, kind="stable")
            step, value = step[order], value[order]
            keep = np.append(step[1:] != step[:-1], True)
            step, value = step[keep], value[keep]
        return cls(step, value)


@dataclass(frozen=True)
class Run:
    """One training run.

    name: as it was given, else its folder's or file's. source: path or URL it was read from. config: nested as
    logged. series: by the metric's name; nested metrics joined by dots. summary: last or summarised values.
    state: finished, running (not ended, written to within two minutes), crashed, or unknown where its source
    cannot tell. warnings: what was damaged or left out.
    """

    name: str
    source: str
    config: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    state: State = "unknown"
    group: str | None = None
    tags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def value(self, name: str) -> Any:
        """A configuration value, None if there is none: `hidden_size`, `optimizer.params.lr`, `lr`.

        '-' and '_' are alike, dots step into sections. The name is looked up at the root, in the sections `model`,
        `config` and `mup`, then anywhere below, where the shallowest counts.
        """
        path = _normal(name).split(".")
        for section in (None, *SECTIONS):
            found = _follow(self.config if section is None else _child(self.config, section), path)
            if found is not None:
                return found
        return next((found for tree in _trees(self.config) if (found := _follow(tree, path)) is not None), None)

    def number(self, name: str) -> float | None:
        """A configuration value as a number, None if there is none or it is not one. See `value`."""
        return as_number(self.value(name))

    def series_of(self, name: str) -> Series:
        """The series of a metric; raises DataError that names the run and the metrics that it has."""
        found = self.series.get(name)
        if found is not None and len(found):
            return found
        if not self.series:
            raise DataError(f"run {self.name} ({self.source}) has logged no metrics")
        close = near(name, self.series)
        known = f"did you mean {' or '.join(close)}?" if close else f"it has {_listed(self.series)}"
        raise DataError(f"run {self.name} ({self.source}) has no metric `{name}`; {known}")


def near(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The names that a user most likely meant, best first."""
    names = list(names)
    wanted = name.lower()
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    parts = [known for known in names if wanted in known.lower() or known.lower() in wanted]
    return list(dict.fromkeys([*close, *parts]))[:limit]


def as_number(value: Any) -> float | None:
    """A number of a configuration, also one that YAML has left as text (`1e-4`); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, str) and not math.isfinite(number) else number


def _listed(names: Iterable[str], limit: int = 12) -> str:
    shown = sorted(name for name in names if not name.startswith("_")) or sorted(names)
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _child(tree: Any, key: str) -> Any:
    if not isinstance(tree, Mapping):
        return None
    if key in tree:
        return tree[key]
    return next((value for name, value in tree.items() if _normal(str(name)) == key), None)


def _follow(tree: Any, path: Sequence[str]) -> Any:
    """The value at a path, None for none or a section; names that hold dots themselves are met too."""
    if not path:
        return None if isinstance(tree, Mapping) else tree
    children = ((_child(tree, ".".join(path[:i])), path[i:]) for i in range(len(path), 0, -1))
    found = (_follow(child, rest) for child, rest in children if child is not None)
    return next((value for value in found if value is not None), None)


def _trees(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All sections, the shallow ones first."""
    level: list[Mapping[str, Any]] = [root]
    while level:
        yield from level
        level = [child for tree in level for child in tree.values() if isinstance(child, Mapping)]
