"""Reads the wire format of Protocol Buffers, limited to what wandb's records use.

See protobuf.dev/programming-guides/encoding.

Reading without the generated classes needs no wandb package, and it works with any combination of wandb and protobuf
versions. `fields` reads one message. `step` reads one field of each of many messages at once, which makes reading long
histories fast.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

VARINT, I64, LEN, I32 = 0, 1, 2, 5

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class Malformed(ValueError):
    """The data is not a message. index: index of the first malformed message, if there are many."""

    def __init__(self, index: int = 0) -> None:
        super().__init__("not a message in the wire format")
        self.index = index


@contextlib.contextmanager
def naming(index: int) -> Iterator[None]:
    """Set the index of a Malformed that is raised inside the context."""
    try:
        yield
    except Malformed as error:
        error.index = index
        raise


def _varint(data: bytes, i: int) -> tuple[int, int]:
    """Decode the unsigned number at i. Returns the number and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if i >= len(data):
            break
        value |= (data[i] & 127) << shift
        i += 1
        if data[i - 1] < 128:
            return value, i
    raise Malformed


def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Fields of a message as (number, content), where content is bytes, or an unsigned int for a varint.

    Raises Malformed.
    """
    for number, kind, start, stop in spans(data):
        yield number, _varint(data, start)[0] if kind == VARINT else data[start:stop]


def spans(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a message as (number, wire type, start of the content, stop). Raises Malformed."""
    i = 0
    while i < len(data):
        tag, i = _varint(data, i)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, stop = _varint(data, i)
        elif kind == LEN:
            size, i = _varint(data, i)
            stop = i + size
        elif kind in (I64, I32):
            stop = i + (8 if kind == I64 else 4)
        else:
            raise Malformed
        if stop > len(data):
            raise Malformed
        yield number, kind, i, stop
        i = stop


def signed(value: int) -> int:
    """Interpret a varint as int32 or int64."""
    return value - (1 << 64) if value >> 63 else value


def zigzag(value: int) -> int:
    """Interpret a varint as sint64."""
    return (value >> 1) ^ -(value & 1)


def double(content: bytes) -> float:
    """Interpret an I64 field as a double."""
    return float(struct.unpack("<d", content)[0])


def _varints(buffer: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """Decode the unsigned number at each position. Returns the numbers and the positions after them.

    A number over 63 bits is decoded incorrectly, but the position after it is correct.
    """
    byte = buffer[at].astype(np.int64)
    value, at = byte & 127, at + 1
    shift, more = 7, np.flatnonzero(byte > 127)
    while more.size and shift < 70:
        byte = buffer[at[more]].astype(np.int64)
        value[more] |= (byte & 127) << min(shift, 62)
        at[more] += 1
        shift, more = shift + 7, more[byte > 127]
    return value, at


def step(buffer: Bytes, at: Ints, end: Ints, owner: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Decode the field at each position: its number, its wire type, and where its content starts and ends.

    buffer: padded with at least ten bytes. at: int64[n], positions of the fields. end: int64[n], ends of their
    messages. owner: int64[n], the indices of the messages. Raises Malformed with the lowest index of a malformed
    message.
    """
    tag, start = _varints(buffer, at)
    number, kind = tag >> 3, tag & 7
    length, after = _varints(buffer, np.minimum(start, len(buffer) - 10))
    if (kind == LEN).all():
        start, stop = after, after + length
    else:
        stop = np.where(kind == VARINT, after, start + np.where(kind == I64, 8, 4))
        start = np.where(kind == LEN, after, start)
        stop = np.where(kind == LEN, after + length, stop)
    bad = (stop > end) | (stop < start) | (kind > I32) | (kind == 3) | (kind == 4)
    if bad.any():
        raise Malformed(int(owner[bad].min()))
    return number, kind, start, stop
