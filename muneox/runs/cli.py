"""The arguments of every tool that reads runs, and how files are put in their place."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.files import write_whole
from muneox.runs.run import Run
from muneox.runs.sources import read_runs


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """RUNS, --group, --tag, --where."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="metrics.jsonl, wandb offline folders, `entity/project`, TensorBoard, CSV; folders and globs",
    )
    parser.add_argument("--group", help="only runs of this group")
    parser.add_argument("--tag", action="append", default=[], help="only runs with this tag (repeatable)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs configured so (repeatable)"
    )


def chosen_runs(options: argparse.Namespace) -> list[Run]:
    """The runs that the arguments name. Raises ConfigError for a --where without '=', else as read_runs."""
    where = {}
    for text in options.where:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--where {text}: write it as KEY=VALUE, such as hidden_size=64")
        where[name.strip()] = value.strip()
    return read_runs(options.runs, group=options.group, tags=options.tag, where=where)


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
