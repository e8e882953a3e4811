"""Tables with one row per run: CSV with commas or semicolons, TSV, and Parquet (through pandas)."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.errors import DataError
from megatron.optional import import_optional
from muneox.runs.files import csv_text

SUFFIXES = (".csv", ".tsv", ".parquet")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf|infinity))\s*([kmbgt]?)", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?P<mark>[,'_ \u00a0\u202f])\d{3}(?:(?P=mark)\d{3})*(?:\.\d+)?(?![\d,])")


@dataclass(frozen=True)
class Table:
    """Rows of cells as text, by column. decimal_comma: whether 3,14 is a number and not 314 or two cells."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]
    decimal_comma: bool = False

    def number(self, index: int, column: str) -> float:
        """The number in a cell of row `index`, from 0. Raises DataError that names the row of the file."""
        value = self.number_or_none(index, column)
        if value is None:
            cell = self.rows[index].get(column) or ""
            raise DataError(f"{self.path}, row {index + 2}: `{column}` is {cell!r}, expected a number")
        return value

    def number_or_none(self, index: int, column: str) -> float | None:
        """The number in a cell of row `index`, from 0; None if the cell is empty or has other text."""
        return as_size(self.rows[index].get(column) or "", self.decimal_comma)

    def repeated(self) -> frozenset[int]:
        """Indices of rows that repeat an earlier row in every cell."""
        first: dict[tuple[str | None, ...], int] = {}
        cells = [tuple(row.get(column) for column in self.columns) for row in self.rows]
        return frozenset(i for i, row in enumerate(cells) if first.setdefault(row, i) != i)


def as_size(cell: str, decimal_comma: bool = False) -> float | None:
    """The number in a cell: 1e-4, 124M, 7B, 1,048,576 or, with `decimal_comma`, 3,14. None for other text."""
    text = cell.strip()
    if decimal_comma and text.count(",") == 1:
        text = text.replace(",", ".")
    elif (grouped := _THOUSANDS.match(text)) is not None:
        text = text.replace(grouped["mark"], "")
    found = _NUMBER.fullmatch(text)
    return None if found is None else float(found[1]) * _UNITS[found[2].lower()]


def read_table(path: Path) -> Table:
    """Read a table. Raises DataError if the file cannot be read."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    with csv_text(path) as file:
        head = file.readline()
        delimiter = "\t" if "\t" in head else ";" if ";" in head else ","
        names = next(csv.reader([head], delimiter=delimiter), [])
        columns = [name.strip() for name in names]
        rows = [row for row in csv.DictReader(file, columns, delimiter=delimiter) if any(row.values())]
    text = [{key: value.strip() for key, value in row.items() if isinstance(value, str)} for row in rows]
    return Table(path, columns, text, decimal_comma=delimiter == ";")


def _read_parquet(path: Path) -> Table:
    pandas = import_optional("pandas", "report", f"reading {path}", DataError)
    try:
        frame = pandas.read_parquet(path)
    except Exception as error:  # the engines raise many types, also for an engine that is missing
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    columns = [str(name) for name in frame.columns]
    cells = frame.astype(object).where(frame.notna(), "").to_numpy().tolist()
    return Table(path, columns, [dict(zip(columns, map(str, row))) for row in cells])
