"""Check disk space and memory before a conversion starts, and put a complete folder in place at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron.errors import CheckpointError
from megatron.files import sync_directory

_BASE = 300 * 2**20  # bytes that the process itself may still need


def free_memory() -> int | None:
    """Bytes of memory that can be used without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) * 1024 for kib in available), None)


def check_memory(needed: int, what: str) -> None:
    """Raise CheckpointError if `needed` bytes, for `what`, and those of the process are not free."""
    free = free_memory()
    if free is not None and needed + _BASE > free:
        raise CheckpointError(
            f"{what} needs {_size(needed + _BASE)} of memory, and {_size(free)} are free: "
            "use a machine with more memory, or end other programs"
        )


def check_disk(folder: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of `folder`, which need not exist, has not `needed` bytes left."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"{folder}: the result needs {_size(needed)} of disk space, and {_size(free)} are free: "
            "free some, or choose a folder on another disk"
        )


def _size(count: int) -> str:
    return f"{count / 10**9:,.1f} GB" if count >= 10**8 else f"{count / 10**6:,.1f} MB"


@contextlib.contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` if the block ends without an error.

    Raises CheckpointError if `folder` holds files already, or cannot be written.
    """
    folder = folder.absolute()
    if folder.is_dir() and any(folder.iterdir()) or folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} exists already: choose another folder, or delete it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            sync_directory(temporary)
            if folder.exists():
                folder.rmdir()
            os.rename(temporary, folder)
            sync_directory(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
