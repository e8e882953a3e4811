"""Reads the log format of wandb's offline files: LevelDB's format with another header and a plain CRC-32.

The file starts with a header of seven bytes (`:W&B`, u16 magic 0xBEE1, u8 version 0). Blocks of 32 KiB follow, counted
from the start of the file. A chunk consists of

- a CRC-32 over type and payload (u32),
- the length of the payload (u16),
- its type (u8: 1 whole, 2 first, 3 middle, 4 last), and
- the payload.

All numbers are little-endian. Fewer than seven bytes at the end of a block are padding. The reference is LevelDB's
doc/log_format.md; header and checksum are those of the files that wandb 0.31 writes.

No chunk crosses a block boundary, so NumPy walks all blocks in parallel, chunk by chunk.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADER, BLOCK, CHUNK_HEADER = 7, 32768, 7
MAGIC = b":W&B\xe1\xbe\x00"
PADDING = 64
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Damage:
    """Where and why a file becomes unreadable. torn: the file only ends early, as for a live or a killed run."""

    offset: int
    what: str
    torn: bool = False

    def __str__(self) -> str:
        return f"{self.what} at byte {self.offset}"


@dataclass(frozen=True)
class Records:
    """Complete records in order: record i is buffer[starts[i]:ends[i]]. offsets: where each begins in the file.

    The buffer ends with PADDING zeros, so reads of fixed width past the last byte are safe.
    """

    buffer: bytes
    starts: Ints
    ends: Ints
    offsets: Ints
    damage: Damage | None


def read_records(data: bytes) -> Records:
    """Read all records before the first damage. Raises ValueError if `data` does not start like a wandb file."""
    if data[:HEADER] != MAGIC[: len(data)]:
        raise ValueError("this is not a wandb file of a known version")
    if len(data) < HEADER:
        none = np.zeros(0, dtype=np.int64)
        return Records(bytes(PADDING), none, none, none, Damage(0, "the header is incomplete", torn=True))
    at, length, kind, damage = _chunks(data)
    if (bad := _first_mismatch(data, at, length)) is not None:
        damage = Damage(int(at[bad]), "the checksum (CRC) does not match")
        at, length, kind = at[:bad], length[:bad], kind[:bad]
    return _joined(data, at, length, kind, damage)


def _chunks(data: bytes) -> tuple[Ints, Ints, Ints, Damage | None]:
    """Offset, length and type of every chunk before the first one that is invalid or incomplete."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    size = len(data)
    position = np.arange(0, size, BLOCK)
    block_end = position + BLOCK
    position[0] = HEADER
    found: list[tuple[Ints, Ints, Ints]] = []
    limit = size  # offset of the earliest damage
    while len(position):
        open_ = (position + CHUNK_HEADER <= block_end) & (position < limit)
        if (cut := position[open_ & (position + CHUNK_HEADER > size)]).size:
            limit = min(limit, int(cut.min()))
            open_ &= position < limit
        position, block_end = position[open_], block_end[open_]
        length = buffer[position + 4].astype(np.int64) + (buffer[position + 5].astype(np.int64) << 8)
        kind = buffer[position + 6].astype(np.int64)
        end = position + CHUNK_HEADER + length
        good = (kind >= WHOLE) & (kind <= LAST) & (end <= block_end) & (end <= size)
        if not good.all():
            limit = min(limit, int(position[~good].min()))
            position, block_end, length, kind, end = (x[good] for x in (position, block_end, length, kind, end))
        found.append((position, length, kind))
        position = end
    at, length, kind = (np.concatenate(parts) for parts in zip(*found))
    order = np.argsort(at, kind="stable")
    order = order[at[order] < limit]
    return at[order], length[order], kind[order], None if limit == size else _trouble(data, limit)


def _trouble(data: bytes, offset: int) -> Damage:
    rest = data[offset : offset + BLOCK]
    if not rest.strip(b"\0"):  # after a power loss, a file system can keep the length but not the bytes
        return Damage(offset, "the file has only zeros")
    length = int.from_bytes(rest[4:6], "little")
    in_block = CHUNK_HEADER + length <= BLOCK - offset % BLOCK
    if len(rest) < CHUNK_HEADER or (in_block and WHOLE <= rest[6] <= LAST):
        return Damage(offset, "the last record is incomplete", torn=True)
    return Damage(offset, "the header of a record is invalid")


def _first_mismatch(data: bytes, at: Ints, length: Ints) -> int | None:
    """Index of the first chunk whose checksum does not match, or None."""
    if not len(at):
        return None
    stored = np.frombuffer(data, dtype=np.uint8)[at[:, None] + np.arange(4)].view("<u4")[:, 0]
    spans = zip((at + 6).tolist(), (at + CHUNK_HEADER + length).tolist())
    computed = np.fromiter(map(zlib.crc32, (data[start:end] for start, end in spans)), np.uint32, len(at))
    wrong = np.flatnonzero(stored != computed)
    return int(wrong[0]) if wrong.size else None


def _joined(data: bytes, at: Ints, length: Ints, kind: Ints, damage: Damage | None) -> Records:
    """Join chunks into records. Records of several chunks are copied to the end of the buffer."""
    starts, ends, offsets = at + CHUNK_HEADER, at + CHUNK_HEADER + length, at.copy()
    keep = kind == WHOLE
    spill: list[bytes] = []
    size, first, parts = len(data), -1, list[bytes]()
    for i in np.flatnonzero(kind != WHOLE).tolist():
        if (kind[i] == FIRST) != (first < 0) or (first >= 0 and i != first + len(parts)):
            where = int(at[first + len(parts)] if first >= 0 else at[i])
            damage = Damage(where, "the chunks of a record are out of order")
            keep[first + len(parts) if first >= 0 else i :] = False
            first, parts = -1, []
            break
        first = i if first < 0 else first
        parts.append(data[starts[i] : ends[i]])
        if kind[i] == LAST:
            spill += parts
            keep[i], offsets[i], starts[i] = True, at[first], size
            ends[i] = size = size + sum(map(len, parts))
            first, parts = -1, []
    if first >= 0:
        keep[first:] = False
        damage = damage if damage and not damage.torn else Damage(int(at[first]), "the last record is incomplete", True)
    return Records(b"".join([data, *spill, bytes(PADDING)]), starts[keep], ends[keep], offsets[keep], damage)
