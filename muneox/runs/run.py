"""A training run: its configuration and its logged metrics."""

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

# Sections of muNeoX's header. The model's dimensions take precedence over the configuration's.
SECTIONS = ("model", "config", "mup")


@dataclass(frozen=True)
class Series:
    """One metric of a run. steps: int64[n], strictly increasing. values: float64[n], can be NaN or infinite."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def of(cls, steps: Sequence[int] | NDArray[Any], values: Sequence[float] | NDArray[Any]) -> Series:
        """Sort the values by step. The last value logged at a step is kept."""
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

    name: the run's name, else the name of its folder or file. source: the path or URL of the run. config: the
    configuration, nested as logged. series: by metric name; levels of nested metrics are joined by dots. summary: last
    or summarised values. state: finished, running (not ended, written to within two minutes), crashed, or unknown if
    the source does not record it. warnings: damage, and what was left out. run_id: the tracker's identifier, which a
    resumed run keeps; empty if there is none.
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
    run_id: str = ""

    def value(self, name: str) -> Any:
        """A configuration value by name (`hidden_size`, `optimizer.params.lr`, `lr`), or None.

        '-' and '_' are equivalent. Dots separate sections. The name is looked up at the root, then in the sections
        `model`, `config` and `mup`, then at any depth, the shallowest first.
        """
        path = _normal(name).split(".")
        for section in (None, *SECTIONS):
            found = _follow(self.config if section is None else _child(self.config, section), path)
            if found is not None:
                return found
        return next((found for tree in _trees(self.config) if (found := _follow(tree, path)) is not None), None)

    def number(self, name: str) -> float | None:
        """A configuration value as a number, or None if it is missing or not a number. See `value`."""
        return as_number(self.value(name))

    def series_of(self, name: str) -> Series:
        """The series of a metric. Raises DataError that names the run and its metrics if it has no such metric."""
        found = self.series.get(name)
        if found is not None and len(found):
            return found
        if not self.series:
            raise DataError(f"run {self.name} ({self.source}) has logged no metrics")
        close = near(name, self.series)
        known = f"did you mean {' or '.join(close)}?" if close else f"it has {_listed(self.series)}"
        raise DataError(f"run {self.name} ({self.source}) has no metric `{name}`; {known}")


def near(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """Up to `limit` names that are similar to `name`, the closest first."""
    names = list(map(str, names))  # keys of a damaged file can be of any type
    wanted = name.lower()
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    parts = [known for known in names if wanted in known.lower() or known.lower() in wanted]
    return list(dict.fromkeys([*close, *parts]))[:limit]


def as_number(value: Any) -> float | None:
    """Convert a configuration value to a number, including text such as `1e-4` from YAML. None for anything else."""
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
    """The value at a path, or None if it is missing or a section. Keys that contain dots are matched too."""
    if not path:
        return None if isinstance(tree, Mapping) else tree
    children = ((_child(tree, ".".join(path[:i])), path[i:]) for i in range(len(path), 0, -1))
    found = (_follow(child, rest) for child, rest in children if child is not None)
    return next((value for value in found if value is not None), None)


def _trees(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All sections, the shallowest first."""
    level: list[Mapping[str, Any]] = [root]
    while level:
        yield from level
        level = [child for tree in level for child in tree.values() if isinstance(child, Mapping)]
