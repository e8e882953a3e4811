"""Writing files whole or not at all. What has its final name is on the disk: it survives a loss of power."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes | str | Iterable[bytes]) -> None:
    """Put `content` in the place of `path` once all of it is on disk. A failure leaves what was there. OSError."""
    pieces = [content] if isinstance(content, bytes) else [content.encode()] if isinstance(content, str) else content
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`, which takes its place when the block ends without an error. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private
        put_in_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file of the same file system, its content and its new name on the disk. Raises OSError."""
    _sync(temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the entries of `directory` (creations, renames) survive a loss of power. Raises OSError."""
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
