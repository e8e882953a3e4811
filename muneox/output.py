"""Writes results atomically as JSON, CSV or text, and formats counts."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from megatron.files import write_whole


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically and create its folder. Raises DataError that names the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV. The first row's keys are the columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON. Numbers that are not finite become null."""
    write_atomically(path, json.dumps(finite_or_none(value), indent=1, allow_nan=False) + "\n")


def finite_or_none(value: Any) -> Any:
    """Convert a value to plain data for JSON, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_none(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def short(value: float) -> str:
    """Format a count with a unit: 6.7e9 becomes 6.7B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if unit <= abs(value) < 1e15:
            return f"{value / unit:.4g}{name}"
    return f"{value:.6g}"
