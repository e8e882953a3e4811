"""Write files atomically and durably: a file with its final name is complete and survives a loss of power."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


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
