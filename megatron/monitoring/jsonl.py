"""metrics.jsonl: the header of the run on the first line, then one object per log step. Every run writes it.

JSON has no non-finite numbers. Such a value is written as null, and its kind ("nan", "inf", "-inf") under
`<name>_nonfinite`. `read_metrics` restores the value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from megatron.files import parse_json, read_bytes, write_whole
from megatron.monitoring.base import Record

NONFINITE = "_nonfinite"
_KINDS = ("nan", "inf", "-inf")


class JsonlMonitor:
    """Appends to `path` and flushes each line. A killed process loses at most the line that it was writing.

    A line that cannot be written is kept and written before the next one, at the latest by `close`. So a full disk
    leaves no gap in the file once there is space again.

    resume_step: None starts a new run and renames the file of an earlier run to `metrics.1.jsonl`, ... A number
    continues the file: records after that step are dropped, so each step occurs once. The new header replaces the old
    one and lists the steps of all resumes under `resumed_from`. The file is rewritten atomically.
    """

    required = True  # a run without its metrics is lost for every comparison

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        self.resume_step = resume_step
        self._file: FileIO | None = None
        self._pending = b""

    def start(self, header: Mapping[str, Any]) -> None:
        """Raises DataError where the file cannot be written."""
        try:
            self._start(header)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written, and a run needs it: {error.strerror or error}") from error

    def _start(self, header: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header, records = dict(header), []
        if self.path.exists():
            earlier = self._earlier()
            if earlier is None:
                _move_aside(self.path)
            else:
                before = earlier[0].get("resumed_from")
                header["resumed_from"] = [*(before if isinstance(before, list) else []), self.resume_step]
                if "rewound_to" in earlier[0]:
                    header["rewound_to"] = earlier[0]["rewound_to"]
                records = earlier[1]
        write_whole(self.path, (_line(entry) for entry in (to_plain(header), *records)))
        self._file = FileIO(self.path, "ab")

    def log(self, record: Record) -> None:
        if not isinstance(record.get("step"), int):
            raise ValueError(f"a record needs an int `step`: {dict(record)}")
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        self._pending += _line(_encode(record))
        self._write(self._file)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, as a resume from it does, and note it in the header."""
        self.close()
        header, records = _parse(self.path)
        header["rewound_to"] = [*header.get("rewound_to", []), step]
        kept = (record for record in records if record["step"] <= step)
        write_whole(self.path, (_line(entry) for entry in (header, *kept)))
        self._file = FileIO(self.path, "ab")

    def _write(self, file: FileIO) -> None:
        """Write what is pending; the bytes that could not be written stay so. Raises OSError."""
        while self._pending:
            self._pending = self._pending[file.write(self._pending) :]

    def close(self) -> None:
        """Raises OSError where lines are lost."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                self._write(file)

    def _earlier(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Header and kept records of the file to continue. None if the file must be renamed."""
        if self.resume_step is None:
            return None
        try:
            header, records = _parse(self.path)
        except DataError:
            return None  # unreadable, but it must not be deleted
        return header, [record for record in records if record["step"] <= self.resume_step]


def append_record(path: Path, record: Record) -> None:
    """Add a record to an existing metrics.jsonl, after removing an incomplete last line. Raises DataError."""
    try:
        with path.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.seek(0, 2)
            file.write(_line(_encode(record)))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def read_metrics(path: Path | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the header and the records of a metrics.jsonl, one per step, with non-finite values restored.

    Lines of the same step are merged into one record, and later values win: a test after the last step writes such a
    line. An incomplete last line, which a killed run leaves, is skipped. Raises DataError, naming the file and the
    line, for any other content.
    """
    header, records = _parse(Path(path))
    return header, [_decode(record) for record in records]


def _parse(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        lines = read_bytes(path).split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    entries: list[dict[str, Any]] = []
    # The text after the last newline is empty, or an incomplete line of a killed process.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = parse_json(line, finite=True)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(entry, dict) or (entries and not _is_step(entry.get("step"))):
            raise DataError(f"{path}, line {number}: not a metrics record, which needs an int `step`")
        if entries and (name := _unreadable(entry)) is not None:
            raise DataError(f"{path}, line {number}: `{name}` is not one of {', '.join(_KINDS)}")
        entries.append(entry)
    if not entries:
        raise DataError(f"{path} has no header line: it is not a metrics file, or its run was killed at the start")
    by_step: dict[int, dict[str, Any]] = {}
    for record in entries[1:]:
        by_step.setdefault(record["step"], {}).update(record)
    return entries[0], list(by_step.values())


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _unreadable(record: Mapping[str, Any]) -> str | None:
    """Name of an entry that `_decode` could not restore, or None."""
    names = (name for name in record if name.endswith(NONFINITE) and name.removesuffix(NONFINITE) in record)
    return next((name for name in names if record[name] not in _KINDS), None)


def _encode(record: Record) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    for name, value in record.items():
        if value is not None and not isinstance(value, int):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            encoded[name], encoded[name + NONFINITE] = None, str(value)
        else:
            encoded[name] = value
    return encoded


def _decode(record: Mapping[str, Any]) -> dict[str, Any]:
    decoded = dict(record)
    for name in record:
        if name.endswith(NONFINITE) and (plain := name.removesuffix(NONFINITE)) in record:
            kind = decoded.pop(name)
            if record[plain] is None and kind in _KINDS:  # two lines of one step can disagree
                decoded[plain] = float(kind)
    return decoded


def to_plain(value: Any) -> Any:
    """Convert a header to JSON types. Values of other types become text."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _move_aside(path: Path) -> None:
    number = 1
    while (target := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(target)
