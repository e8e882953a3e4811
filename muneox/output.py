"""How results are written: whole files, strict JSON, CSV; and how counts are shown."""

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
    """Write a whole file or nothing; its folder is made. Raises DataError naming the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the names of the first one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: what is not finite becomes null."""
    write_atomically(path, json.dumps(finite_or_none(value), indent=1, allow_nan=False) + "\n")


def finite_or_none(value: Any) -> Any:
    """Plain data for JSON, numbers that are not finite replaced by None."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_none(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def short(value: float) -> str:
    """A count as people say it: 6.7e9 as 6.7B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if unit <= abs(value) < 1e15:
            return f"{value / unit:.4g}{name}"
    return f"{value:.6g}"
