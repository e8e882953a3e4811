"""Reads named values from wandb's records (HistoryItem, SummaryItem, ConfigItem), singly or in bulk.

An item is a name (`key`, or one `nested_key` per level) and a value. The value is JSON text in `value_json` or, in
newer versions of the format, a typed field. Names repeat at every step, so they are compared as bytes and each distinct
name is decoded once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muneox.runs import wire
from muneox.runs.wire import Bytes, Ints

KEY, NESTED_KEY, BOOLEAN, INTEGER, NUMBER, TEXT, JSON, VALUE_JSON = 1, 2, 4, 5, 6, 7, 8, 16
MAX_NUMBER = 32  # bytes; a double needs at most 24 in JSON. PADDING must be larger.
MAX_FIELD = 1 << 29  # larger numbers of fields are invalid
FEW = 64  # messages that are read one by one
MAX_NAME = 64  # bytes; items with a longer name are read one by one
MAX_ITEM_FIELDS = 32  # items with more fields are read one by one


def item(message: bytes) -> tuple[str, bytes | None]:
    """Decode an item: its name, with levels joined by dots, and its value as JSON text, or None without a value."""
    nested: list[str] = []
    key, value = "", None
    for number, content in wire.fields(message):
        if isinstance(content, int):
            if number == BOOLEAN:
                value = b"true" if content else b"false"
            elif number == INTEGER:
                value = str(wire.zigzag(content)).encode()
        elif number == KEY:
            key = content.decode(errors="replace")
        elif number == NESTED_KEY:
            nested.append(content.decode(errors="replace"))
        elif number in (VALUE_JSON, JSON):
            value = content
        elif number == TEXT:
            value = json.dumps(content.decode(errors="replace")).encode()
        elif number == NUMBER and len(content) == 8:
            value = json.dumps(wire.double(content)).encode()
    return ".".join(nested) or key, value


@dataclass(frozen=True)
class Fields:
    """Fields of many messages, ordered by message and position. owner: index of the message. All int64[n]."""

    owner: Ints
    number: Ints
    start: Ints
    stop: Ints

    def select(self, mask: NDArray[np.bool_]) -> Fields:
        return Fields(self.owner[mask], self.number[mask], self.start[mask], self.stop[mask])


def fields_of(buffer: Bytes, start: Ints, stop: Ints, owner: Ints) -> Fields:
    """All length-delimited fields of the messages buffer[start:stop].

    Raises wire.Malformed with the owner of the first malformed message.
    """
    found = []
    while True:
        going = start < stop
        start, stop, owner = start[going], stop[going], owner[going]
        if len(start) < FEW:
            found.append(_fields_one_by_one(buffer, start, stop, owner))
            break
        number, kind, content, end = wire.step(buffer, start, stop, owner)
        length_delimited = kind == wire.LEN
        found.append(Fields(owner, number, content, end).select(length_delimited))
        start = end
    none = np.zeros(0, dtype=np.int64)
    columns = [[getattr(part, name) for part in found] for name in ("owner", "number", "start", "stop")]
    everything = Fields(*(np.concatenate([none, *parts]) for parts in columns))
    order = np.argsort(everything.owner, kind="stable")
    return Fields(*(getattr(everything, name)[order] for name in ("owner", "number", "start", "stop")))


def _fields_one_by_one(buffer: Bytes, start: Ints, stop: Ints, owner: Ints) -> Fields:
    """Like `fields_of`, in pure Python: faster for few messages, which can have any number of fields."""
    rows: list[tuple[int, int, int, int]] = []
    for first, last, index in zip(start.tolist(), stop.tolist(), owner.tolist()):
        with wire.naming(index):
            for number, kind, content, end in wire.spans(buffer[first:last].tobytes()):
                if kind == wire.LEN:
                    rows.append((index, min(number, MAX_FIELD), first + content, first + end))
    return Fields(*(np.array(column, dtype=np.int64) for column in (zip(*rows) if rows else ((), (), (), ()))))


@dataclass(frozen=True)
class Group:
    """Items with the same name: their indices in Fields, and where the JSON text of each value starts and stops.

    text: the JSON text of a single item whose value is not JSON text in the file, for example a typed value.
    """

    name: str
    places: Ints
    start: Ints
    stop: Ints
    text: bytes | None = None

    def texts(self, data: bytes) -> list[bytes]:
        """The values as JSON text."""
        if self.text is not None:
            return [self.text]
        return [data[start:stop] for start, stop in zip(self.start.tolist(), self.stop.tolist())]

    def floats(self, buffer: Bytes) -> NDArray[np.float64]:
        """The values as float64[n]. Raises ValueError if a value is not a number."""
        length = self.stop - self.start
        width = int(length.max())
        if self.text is not None or not 0 < width <= MAX_NUMBER:
            raise ValueError("the values are not all numbers")
        anywhere = np.ndarray((len(buffer) - width + 1,), dtype=f"S{width}", buffer=buffer.data, strides=(1,))
        texts = anywhere[self.start]
        texts.view(np.uint8).reshape(-1, width)[np.arange(width) >= length[:, None]] = 0
        return texts.astype(np.float64)


class Names:
    """Groups items by name and decodes each distinct name once."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def groups(self, data: bytes, buffer: Bytes, items: Fields, last: bool = False) -> list[Group]:
        """Group the items by name, in order. last: keep only the last item of each name."""
        name_stop, value = _split(buffer, items)
        usual = (value >= 0) & (name_stop - items.start <= MAX_NAME)
        found = []
        for index in _alike(buffer, items.start, name_stop, np.flatnonzero(usual)):
            with wire.naming(int(items.owner[index[0]])):
                name = self._name(data[items.start[index[0]] : name_stop[index[0]]])
            index = index[-1:] if last else index
            found.append(Group(name, index, value[index], items.stop[index]))
        for i in np.flatnonzero(~usual).tolist():
            with wire.naming(int(items.owner[i])):
                name, text = item(data[items.start[i] : items.stop[i]])
            place = np.array([i])
            found.append(Group(name, place, place, place, b"null" if text is None else text))
        return found

    def _name(self, message: bytes) -> str:
        if message not in self._known:
            self._known[message] = item(message)[0]
        return self._known[message]


def _split(buffer: Bytes, items: Fields) -> tuple[Ints, Ints]:
    """Where each item's name stops and its JSON value starts, or -1 if `value_json` is not the item's last field."""
    name_stop, value = np.full(len(items.start), -1), np.full(len(items.start), -1)
    index, at = np.arange(len(items.start)), items.start
    for _ in range(MAX_ITEM_FIELDS):
        if not index.size:
            break
        number, _, start, stop = wire.step(buffer, at, items.stop[index], items.owner[index])
        last = (number == VALUE_JSON) & (stop == items.stop[index])
        name_stop[index[last]], value[index[last]] = at[last], start[last]
        going = stop < items.stop[index]
        index, at = index[going], stop[going]
    return name_stop, value


def _alike(buffer: Bytes, start: Ints, stop: Ints, chosen: Ints) -> list[Ints]:
    """Group the chosen indices by equal bytes buffer[start:stop]. Each group is in ascending order."""
    if not chosen.size:
        return []
    start, length = start[chosen], (stop - start)[chosen]
    words = np.ndarray((len(buffer) - 7,), dtype="<u8", buffer=buffer.data, strides=(1,))
    columns = [length.astype(np.uint64)]
    for k in range(0, int(length.max()), 8):
        columns.append(words[np.minimum(start + k, len(words) - 1)] & _LOW_BYTES[np.clip(length - k, 0, 8)])
    digest = np.zeros(len(start), dtype=np.uint64)
    for column in columns:
        digest = (digest ^ column) * np.uint64(0x9E3779B97F4A7C15)
        digest ^= digest >> np.uint64(32)
    # Two names can share a short digest. Sorting by it alone is fast and almost always sufficient.
    order = np.argsort(digest.astype(np.uint16), kind="stable")
    groups, borders = _borders(columns, order)
    if groups > len(np.unique(digest[order[borders]])):
        order = np.lexsort(columns)
        _, borders = _borders(columns, order)
    return np.split(chosen[order], borders[1:])


def _borders(columns: list[NDArray[np.uint64]], order: Ints) -> tuple[int, Ints]:
    """The number of groups of equal neighbours, and where each group begins."""
    differs = np.zeros(len(order) - 1, dtype=bool)
    for column in columns:
        differs |= np.diff(column[order]) != 0
    borders = np.concatenate([[0], np.flatnonzero(differs) + 1])
    return len(borders), borders


_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)
