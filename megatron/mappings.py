"""Flatten and compare nested mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_ROWS = 40


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Any = _Absent()


class Difference(NamedTuple):
    """A value that differs between two mappings, ABSENT if missing in one. name: its keys, joined by dots."""

    name: str
    first: Any
    second: Any


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key. Tuples become lists, as in a file, and an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Return the differences of two nested mappings of plain values, in key order. Numbers are compared exactly."""
    before, after = flatten(first), flatten(second)
    pairs = [Difference(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in before | after]
    return [pair for pair in pairs if pair.first != pair.second]


def difference_table(found: Sequence[Difference], headings: tuple[str, str, str]) -> str:
    """Format the differences as aligned lines, sorted by name. Shows at most 40."""
    rows = [(name, repr(first), repr(second)) for name, first, second in sorted(found, key=lambda pair: pair.name)]
    shown = [headings, *rows[:MAX_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(rows) > MAX_ROWS:
        lines.append(f"  ... and {len(rows) - MAX_ROWS} more")
    return "\n".join(lines)
