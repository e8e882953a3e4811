"""Reads Weights & Biases offline runs (`run-*.wandb` files) that are live, finished, killed or damaged.

The fields and their numbers are those of wandb's wandb_internal.proto.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron.errors import DataError
from megatron.files import parse_json, read_bytes
from muneox.runs import wire
from muneox.runs.items import Fields, Group, Names, fields_of, item
from muneox.runs.leveldb import Damage, Records, read_records
from muneox.runs.run import Run, Series, State
from muneox.runs.wire import Ints

LIVE_SECONDS = 120  # wandb logs the machine's load every few seconds, independently of the training
BATCH = 16384  # records decoded at once; few enough to stay in the processor's cache

HISTORY, SUMMARY, CONFIG, RUN, EXIT = 2, 3, 5, 17, 18  # Record
ITEM = 1  # HistoryRecord
UPDATE, REMOVE = 1, 2  # SummaryRecord, ConfigRecord
RUN_ID, RUN_CONFIG, RUN_SUMMARY, RUN_GROUP, RUN_NAME, RUN_TAG = 1, 4, 5, 6, 8, 10  # RunRecord
EXIT_CODE = 1  # RunExitRecord


def read_wandb_file(path: Path) -> Run:
    """Read a `run-*.wandb` file up to its last complete record. Damage is reported in `warnings`.

    Raises DataError if the file cannot be read or is not a wandb file.
    """
    try:
        data = read_bytes(path)
        age = time.time() - os.stat(path).st_mtime
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        records = read_records(data)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    reader = _RecordReader(records)
    damage = reader.read()
    run_id = path.stem.removeprefix("run-")
    return Run(
        name=reader.name or reader.run_id or run_id,
        source=str(path),
        config=_parsed(reader.config),
        series=reader.series(),
        summary=_parsed(reader.summary),
        state=_state(reader.exit_code, age),
        group=reader.group,
        tags=reader.tags,
        warnings=(f"{path}: {damage}; later records are left out",) if damage else (),
        run_id=reader.run_id,
    )


class _RecordReader:
    """Collects configuration, summary, metrics and state of one run from its records."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.config: dict[str, bytes] = {}
        self.summary: dict[str, bytes] = {}
        self.name = self.run_id = ""
        self.group: str | None = None
        self.tags: tuple[str, ...] = ()
        self.exit_code: int | None = None
        self._names = Names()
        self._rows = 0
        self._columns: dict[str, list[tuple[Ints, Any]]] = {}
        self._buffer = np.frombuffer(records.buffer, dtype=np.uint8)

    def read(self) -> Damage | None:
        """Read all records. Returns the first damage, or None."""
        count = len(self.records.starts)
        for first in range(0, count, BATCH):
            last = end = min(first + BATCH, count)
            while True:
                try:
                    self._batch(first, last)
                    break
                except wire.Malformed as error:  # another check can find an earlier record in the next round
                    last = min(error.index, last - 1)
            if last < end:
                return Damage(int(self.records.offsets[last]), "a record that is not a wandb message")
        return self.records.damage

    def _batch(self, first: int, last: int) -> None:
        """Read records first..last.

        Raises wire.Malformed with the index of a malformed record, before any metric is stored.
        """
        starts, ends = self.records.starts[first:last], self.records.ends[first:last]
        messages = fields_of(self._buffer, starts, ends, np.arange(first, last))
        history, metrics = self._groups(messages, HISTORY, (ITEM,))
        summary, updates = self._groups(messages, SUMMARY, (UPDATE, REMOVE), last=True)
        for i in np.flatnonzero(np.isin(messages.number, (CONFIG, RUN, EXIT))).tolist():
            content = self.records.buffer[messages.start[i] : messages.stop[i]]
            with wire.naming(int(messages.owner[i])):
                self._single(int(messages.number[i]), content)
        owners = messages.owner[messages.number == HISTORY]
        for group in metrics:
            rows = self._rows + np.searchsorted(owners, history.owner[group.places])
            self._columns.setdefault(group.name, []).append(self._numbers(rows, group))
        self._rows += len(owners)
        for group in sorted(updates, key=lambda group: int(group.places[-1])):
            number = int(summary.number[group.places[-1]])
            _apply(self.summary, group.name, number, group.texts(self.records.buffer)[-1])

    def _groups(
        self, messages: Fields, kind: int, numbers: tuple[int, ...], last: bool = False
    ) -> tuple[Fields, list[Group]]:
        """The items in the fields `numbers` of all messages of type `kind`, and their groups by name."""
        chosen = messages.select(messages.number == kind)
        items = fields_of(self._buffer, chosen.start, chosen.stop, chosen.owner)
        items = items.select(np.isin(items.number, numbers))
        return items, self._names.groups(self.records.buffer, self._buffer, items, last)

    def _numbers(self, rows: Ints, group: Group) -> tuple[Ints, NDArray[np.float64]]:
        """The rows and values of a group, without values that are not numbers."""
        try:
            return rows, group.floats(self._buffer)
        except ValueError:  # the group includes text, images or other values
            values = [_number(text) for text in group.texts(self.records.buffer)]
            kept = [i for i, value in enumerate(values) if value is not None]
            return rows[kept], np.array([values[i] for i in kept], dtype=np.float64)

    def _single(self, kind: int, message: bytes) -> None:
        if kind == CONFIG:
            self._update(self.config, message)
        elif kind == RUN:
            self._run(message)
        else:
            codes = [value for number, value in wire.fields(message) if number == EXIT_CODE and isinstance(value, int)]
            self.exit_code = wire.signed(codes[-1]) if codes else 0

    def _run(self, message: bytes) -> None:
        tags = []
        for number, content in wire.fields(message):
            if not isinstance(content, bytes):
                continue
            text = content.decode(errors="replace")
            if number in (RUN_CONFIG, RUN_SUMMARY):
                self._update(self.config if number == RUN_CONFIG else self.summary, content)
            elif number == RUN_ID:
                self.run_id = text
            elif number == RUN_NAME:
                self.name = text
            elif number == RUN_GROUP:
                self.group = text or None
            elif number == RUN_TAG:
                tags.append(text)
        self.tags = tuple(tags)

    def _update(self, target: dict[str, bytes], message: bytes) -> None:
        for number, content in wire.fields(message):
            if isinstance(content, bytes) and number in (UPDATE, REMOVE):
                name, text = item(content)
                _apply(target, name, number, text)

    def series(self) -> dict[str, Series]:
        """Every numeric metric over wandb's step, including wandb's own metrics (`_runtime`, ...)."""
        columns = {
            name: (np.concatenate([rows for rows, _ in parts]), np.concatenate([values for _, values in parts]))
            for name, parts in self._columns.items()
        }
        steps = np.arange(self._rows, dtype=np.int64)
        if "_step" in columns:
            rows, values = columns.pop("_step")
            known = np.abs(values) < 2**53  # False for NaN
            steps[rows[known]] = values[known].astype(np.int64)
        return {name: Series.of(steps[rows], values) for name, (rows, values) in columns.items() if len(rows)}


def _apply(target: dict[str, bytes], name: str, number: int, text: bytes | None) -> None:
    if number == REMOVE:
        target.pop(name, None)
    elif text is not None:
        target[name] = text


def _number(text: bytes) -> float | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    return float(value) if isinstance(value, bool | int | float) else None


def _state(exit_code: int | None, age: float) -> State:
    if exit_code is None:
        return "running" if age < LIVE_SECONDS else "crashed"
    return "finished" if exit_code == 0 else "crashed"


def _parsed(texts: dict[str, bytes]) -> dict[str, Any]:
    """Parse JSON values by name, without wandb's internal ones."""
    parsed = {}
    for key, text in texts.items():
        if not key.startswith("_wandb"):
            try:
                parsed[key] = parse_json(text)
            except ValueError:
                parsed[key] = text.decode(errors="replace")
    return parsed
