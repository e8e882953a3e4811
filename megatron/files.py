"""Read untrusted files within limits. Write files atomically and durably: one with its final name is complete."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_DEPTH = 100  # levels of nesting in JSON; code that walks through the values recursively handles this depth
_MEBI = 1 << 20


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading. Raises OSError for anything but a regular file, without waiting on a named pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "is a folder" if stat.S_ISDIR(mode) else "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Content of a regular file of at most `limit` bytes. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than the limit of {limit:,}", os.fspath(path))
        return file.read()


def parse_json(content: str | bytes, finite: bool = False) -> Any:
    """Parse JSON of at most 100 levels whose integers fit in 64 bits. Raises ValueError for everything else.

    finite: refuse NaN and infinity, which Python writes but JSON does not have.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content))
    try:
        value = (_FINITE_DECODER if finite else _DECODER).decode(content)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _items(outer) if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def read_json(path: str | os.PathLike[str], limit: int = 256 * _MEBI) -> Any:
    """`parse_json` of a file. Raises OSError and ValueError."""
    return parse_json(read_bytes(path, limit))


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= (value := int(digits)) < 1 << 64:
        raise ValueError(f"an integer of {len(digits)} digits does not fit in 64 bits")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


_DECODER = json.JSONDecoder(parse_int=_integer)
_FINITE_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=_finite)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def write_whole(path: Path, content: bytes | str | Iterable[bytes]) -> None:
    """Write `content` to `path` atomically. On failure the previous file is unchanged. Raises OSError."""
    pieces = [content] if isinstance(content, bytes) else [content.encode()] if isinstance(content, str) else content
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path` that replaces it if the block ends without an error. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp creates it readable by its owner only
        put_in_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Sync `temporary` to disk, rename it to `path` (on the same file system) and sync the name. Raises OSError."""
    _sync(temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Sync the entries of `directory` (new and renamed files) to disk. Raises OSError."""
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_output(descriptor: int) -> None:
    """Send what is written to a file descriptor to the null device, also at the end of the process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
