"""Sizes of runs whose source has none, such as TensorBoard: from a table next to the runs, or from their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron.errors import ConfigError, DataError
from muneox.runs import Run
from muneox.scaling.table import SUFFIXES, as_size, read_table

FROM_NAME = "name"  # the value of --sizes that reads the names
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*([kKmMbB])(?![A-Za-z0-9])")


def with_sizes(runs: Sequence[Run], sizes: str) -> list[Run]:
    """The runs with the values of `sizes` added to their configuration, where they take precedence.

    sizes: `name`, which reads `params` from a name such as `pythia-410m` or `gpt_1.3B`; or a table with the column
    `name` (or `run`), which holds a run's name or id, and any columns of numbers. Raises ConfigError for another file,
    and DataError that names the run for a run without a size.
    """
    if sizes == FROM_NAME:
        return [replace(run, config={**run.config, "params": _named(run)}) for run in runs]
    path = Path(sizes)
    if not (path.suffix in SUFFIXES and path.is_file()):
        raise ConfigError(f"--sizes {sizes}: expected `{FROM_NAME}`, or a table ({', '.join(SUFFIXES)}) that exists")
    table = read_table(path)
    key = next((column for column in ("name", "run") if column in table.columns), None)
    if key is None:
        raise DataError(f"{path} has no column `name` with the names of the runs; it has {', '.join(table.columns)}")
    rows = {row.get(key, ""): i for i, row in enumerate(table.rows)}
    found = []
    for run in runs:
        index = rows.get(run.name, rows.get(run.run_id))
        if index is None:
            raise DataError(f"{path} has no row for the run {run.name}; its column `{key}` has {', '.join(rows)}")
        numbers = {column: table.number_or_none(index, column) for column in table.columns if column != key}
        known = {column: value for column, value in numbers.items() if value is not None}
        found.append(replace(run, config={**run.config, **known}))
    return found


def _named(run: Run) -> float:
    """The only size in a run's name. Raises DataError if there is none, or more than one."""
    values = {as_size("".join(match)) for match in _SIZE.findall(run.name.replace("_", " "))}
    if len(values) != 1:
        what = "no size" if not values else "more than one size"
        raise DataError(f"--sizes {FROM_NAME}: the name of the run {run.name} has {what}, such as 124M; use a table")
    (value,) = values
    return float(value or 0)
