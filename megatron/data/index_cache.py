"""Arrays that are stored in a folder with their SHA-256 and mapped into memory from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.guard import FileGuard
from megatron.data.open_files import Lazy
from megatron.errors import DataError
from megatron.files import open_regular, read_json, write_whole

_HASHES = "sha256.json"  # SHA-256 of each array's file

Mapped = tuple[dict[str, np.ndarray], tuple[FileGuard, ...]]


class StoredArrays:
    """Named arrays: mapped from a folder, where their files are opened when they are needed, or in memory.

    Pickled as the path of the folder.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, arrays: dict[str, np.ndarray] | None = None) -> None:
        self._names, self._folder, self._arrays = names, folder, arrays
        self._opened = Lazy(self._open)

    def _open(self) -> Mapped:
        if self._arrays is not None or self._folder is None:
            return self._arrays or {}, ()
        mapped = load_arrays(self._folder, self._names, verify=False)
        if mapped is None:
            raise DataError(f"{self._folder}: these files are gone or damaged, and the run reads its samples from them")
        return mapped

    def __call__(self) -> Mapped:
        """The arrays by name, and guards of their files. Raises DataError if the files are gone."""
        return self._opened()

    def files_exist(self) -> bool:
        """Whether this host has the folder. True for arrays in memory."""
        return self._folder is None or self._folder.is_dir()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._opened = Lazy(self._open)


def load_or_store(
    folder: Path,
    names: Sequence[str],
    write: Callable[[Path], None],
    build: Callable[[], dict[str, np.ndarray]],
) -> StoredArrays:
    """Map the arrays of `folder` after verifying them, or let `write` make their files there.

    Where nothing can be written, `build` makes the arrays in memory.
    """
    if load_arrays(folder, names) is not None or store_arrays(folder, names, write):
        return StoredArrays(names, folder)
    return StoredArrays(names, folder) if load_arrays(folder, names) else StoredArrays(names, None, build())


def load_arrays(folder: Path, names: Sequence[str], verify: bool = True) -> Mapped | None:
    """Map the arrays of a folder, with guards of their files. None if one is missing.

    verify: also None if any byte differs from what was stored. This reads the files.
    """
    try:
        if verify and read_json(folder / _HASHES, 10_000) != _hashes(folder, names):
            return None
        mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError, EOFError):
        return None
    guards = tuple(FileGuard(folder / f"{name}.npy", array) for name, array in mapped.items())
    return {name: array.view(np.ndarray) for name, array in mapped.items()}, guards


def store_arrays(folder: Path, names: Sequence[str], write: Callable[[Path], None]) -> bool:
    """Let `write` make `<name>.npy` for each name in a new folder. Returns True if they are stored.

    The folder appears with all its files or not at all. Several processes can do this at once.
    """
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock out other users of a shared corpus
        write(temporary)
        for name in names:
            with open(temporary / f"{name}.npy", "rb") as file:
                os.fsync(file.fileno())
        write_whole(temporary / _HASHES, json.dumps(_hashes(temporary, names)))
        if folder.exists() and load_arrays(folder, names) is None:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        return True
    except OSError:  # read-only folder, full disk, or another process was first
        return False
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file by name. Raises OSError."""
    hashes = {}
    for name in names:
        with open_regular(folder / f"{name}.npy") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
