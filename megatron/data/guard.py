"""Notices that a memory-mapped file has become shorter, where a read would end the process (SIGBUS)."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from megatron.errors import DataError


class FileGuard:
    """Knows the size that a file had when it was mapped."""

    def __init__(self, path: Path, mapped: np.memmap | None) -> None:
        """mapped: None for a file that is not mapped, such as an empty one."""
        self.path = path
        self._map: mmap.mmap | None = getattr(mapped, "_mmap", None)

    def check(self) -> None:
        """Raise DataError, which names the file, if it is shorter than it was. Costs one fstat."""
        if self._map is not None and (size := self._map.size()) < len(self._map):
            raise DataError(
                f"{self.path}: it was truncated while in use, from {len(self._map)} to {size} bytes; restore the file, "
                "then resume from the last checkpoint"
            )

    def __reduce__(self) -> tuple[type[FileGuard], tuple[Path, None]]:
        return FileGuard, (self.path, None)  # a mapped array is pickled by value, or opens its file again
