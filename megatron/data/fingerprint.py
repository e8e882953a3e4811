"""Fingerprint of a corpus, which detects runs on different text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.data.indexed_dataset import PREPARE_HINT, data_file
from megatron.errors import DataError

_BLOCK = 1 << 20
_BLOCKS = 256  # number of blocks that are hashed of a larger file


def require_files(prefixes: Sequence[str], tokenizer_files: Sequence[str]) -> None:
    """Raise DataError for the first file of the data or the tokenizer that does not exist.

    Called before torch and DeepSpeed are loaded, which takes seconds.
    """
    files = [("data", data_file(prefix, suffix)) for prefix in prefixes for suffix in (".bin", ".idx")]
    for kind, path in [*files, *(("the tokenizer", Path(file)) for file in tokenizer_files)]:
        if not path.exists():
            raise DataError(f"{path}, a file of {kind}, does not exist: {PREPARE_HINT}")


def corpus_fingerprint(prefixes: Sequence[str | Path]) -> dict[str, Any]:
    """`bytes` and `sha256` of the .bin and .idx files of all prefixes in order. File names do not matter.

    For a file over 256 MiB, the SHA-256 covers its size and 256 evenly spaced blocks of 1 MiB, including the first and
    the last. This takes about a second per file of any size. Raises DataError if a file cannot be read.
    """
    digest, total = hashlib.sha256(), 0
    for prefix in prefixes:
        for suffix in (".bin", ".idx"):
            path = data_file(prefix, suffix)
            if not path.is_file():
                raise DataError(f"{path} does not exist: {PREPARE_HINT}")
            try:
                total += _add(digest, path)
            except OSError as error:
                raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
    return {"bytes": total, "sha256": digest.hexdigest()}


def _add(digest: Any, path: Path) -> int:
    """Add the size and the content of a file to the digest. Returns the size."""
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= _BLOCK * _BLOCKS:
            while block := file.read(_BLOCK):
                digest.update(block)
        else:
            for i in range(_BLOCKS):
                file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return size
