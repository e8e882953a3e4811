"""Protocol buffers' wire format, as far as reading wandb's records needs it (protobuf.dev/programming-guides/encoding).

Reading without the generated classes needs no wandb package and does not depend on the pair of wandb and protobuf
versions. `fields` reads one message; `step` takes a field of each of many messages at once, which is what makes a
long history quick to read.
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
    """Not a message. index: of the first of many messages that is not."""

    def __init__(self, index: int = 0) -> None:
        super().__init__("not a message in the wire format")
        self.index = index


@contextlib.contextmanager
def naming(index: int) -> Iterator[None]:
    """A Malformed from within gets this index."""
    try:
        yield
    except Malformed as error:
        error.index = index
        raise


def _varint(data: bytes, i: int) -> tuple[int, int]:
    """An unsigned number at i, and where it ends."""
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
    """Fields of a message as (number, content): bytes, or an unsigned number for a varint. Raises Malformed."""
    i = 0
    while i < len(data):
        tag, i = _varint(data, i)
        kind = tag & 7
        if kind == VARINT:
            value, i = _varint(data, i)
            yield tag >> 3, value
            continue
        size = 8 if kind == I64 else 4
        if kind == LEN:
            size, i = _varint(data, i)
        elif kind not in (I64, I32):
            raise Malformed
        if i + size > len(data):
            raise Malformed
        yield tag >> 3, data[i : i + size]
        i += size


def signed(value: int) -> int:
    """A varint as int32 or int64."""
    return value - (1 << 64) if value >> 63 else value


def zigzag(value: int) -> int:
    """A varint as sint64."""
    return (value >> 1) ^ -(value & 1)


def double(content: bytes) -> float:
    """An I64 field as a double."""
    return float(struct.unpack("<d", content)[0])


def _varints(buffer: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """The unsigned number at each position, and where it ends. One over 63 bits comes out wrong, but ends right."""
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
    """The field at each position: its number, its wire type, and where its content starts and ends.

    buffer is padded by ten bytes or more. at, end: int64[n], of messages whose `owner` (int64[n]) a Malformed names.
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
