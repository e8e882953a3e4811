"""Token files `<prefix>.bin` and `<prefix>.idx` in the format of Megatron-LM and GPT-NeoX (`MMIDIDX`, version 1).

All values are little-endian. The `.bin` contains the tokens of all sequences, one after another. The `.idx` contains

    magic `MMIDIDX\\0\\0`
    u64 version = 1
    u8 dtype code
    u64 n, the number of sequences
    u64 d, the number of entries of the document index
    i32 sizes[n], the length of each sequence in tokens
    i64 pointers[n], the start of each sequence in the .bin in bytes
    i64 document index[d], the first sequence of each document; starts at 0 and ends with n

The dtype codes are the keys of `DTYPES`.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron.data.guard import FileGuard
from megatron.data.open_files import Lazy
from megatron.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name) for code, name in enumerate(["<u1", "<i1", "<i2", "<i4", "<i8", "<f4", "<f8", "<u2"], start=1)
}
_HEADER = struct.Struct("<9sQBQQ")
_CHECK_CHUNK = 1 << 20
PREPARE_HINT = "make the default corpus with `python prepare_data.py`, or yours with tools/datasets/preprocess_data.py"


def best_fitting_dtype(vocab_size: int) -> np.dtype:
    """Smaller of uint16 and int32 that holds token ids below `vocab_size`. The threshold is GPT-NeoX's."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


def check_dtype_holds(dtype: np.dtype, vocab_size: int, name: str | Path) -> None:
    """Raise DataError if a token id below `vocab_size` could overflow `dtype`."""
    largest = np.iinfo(dtype).max if dtype.kind in "iu" else 0
    if vocab_size - 1 > largest:
        raise DataError(
            f"{name}: a vocabulary of {vocab_size} tokens does not fit dtype {dtype.name} "
            f"(ids up to {largest}): use {best_fitting_dtype(vocab_size).name}"
        )


def data_file(prefix: str | Path, suffix: str) -> Path:
    """`<prefix>.bin` or `<prefix>.idx`. The prefix can already end in .bin or .idx."""
    text = os.fspath(prefix)
    if text.endswith((".bin", ".idx")):
        text = text[:-4]
    return Path(text + suffix)


class IndexedDataset:
    """Read-only, memory-mapped sequences of token ids.

    `dtype` is the type of the tokens. The files are verified when the data set is made: DataError names the missing,
    truncated or corrupt file. They are opened when they are needed (see `open_files`). It is pickled as its path, which
    makes sending it to worker processes cheap.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = data_file(prefix, "")
        self._bytes: tuple[int, int] | None = None
        self._opened = Lazy(self._open)
        self.dtype = self._opened().tokens.dtype
        self._verify()

    def _open(self) -> _Files:
        idx_path, bin_path = data_file(self.prefix, ".idx"), data_file(self.prefix, ".bin")
        for path in (idx_path, bin_path):
            if not path.is_file():
                raise DataError(f"{path} does not exist: {PREPARE_HINT}")
        try:
            (raw, index_guard), (tokens, guard) = _map_file(idx_path), _map_file(bin_path)
        except OSError as error:
            raise DataError(f"{self.prefix}: cannot read: {error.strerror or error}") from error
        size = raw.size, tokens.size
        if self._bytes not in (None, size):
            raise DataError(
                f"{self.prefix}: its files were truncated or replaced while in use, from {self._bytes} to {size} bytes "
                "(.idx, .bin); restore them, then resume from the last checkpoint"
            )
        self._bytes = size
        dtype, n, d = _read_header(raw, idx_path)
        if tokens.size % dtype.itemsize:
            raise DataError(f"{bin_path}: {tokens.size} bytes is not a whole number of {dtype.name}: truncated?")
        offset = _HEADER.size
        return _Files(
            sizes=np.frombuffer(raw, "<i4", n, offset),
            pointers=np.frombuffer(raw, "<i8", n, offset + 4 * n),
            doc_idx=np.frombuffer(raw, "<i8", d, offset + 12 * n),
            tokens=tokens.view(dtype),
            guards=(index_guard, guard),
        )

    @property
    def sizes(self) -> np.ndarray:
        """Length of each sequence in tokens [n] i32."""
        return self._opened().sizes

    @property
    def doc_idx(self) -> np.ndarray:
        """First sequence of each document [d] i64."""
        return self._opened().doc_idx

    def _verify(self) -> None:
        idx_path, files = data_file(self.prefix, ".idx"), self._opened()
        end = 0
        for first in range(0, len(self), _CHECK_CHUNK):  # in chunks, because a large index might not fit in memory
            sizes = files.sizes[first : first + _CHECK_CHUNK].astype(np.int64)
            if sizes.min() < 0:
                raise DataError(f"{idx_path}: corrupt, a sequence has a negative size")
            ends = end + np.cumsum(sizes * self.dtype.itemsize)
            starts = np.concatenate(([end], ends[:-1]))
            if not np.array_equal(files.pointers[first : first + _CHECK_CHUNK], starts):
                raise DataError(f"{idx_path}: corrupt, its pointers and its sizes disagree")
            end = int(ends[-1])
        doc_idx = files.doc_idx
        monotonic = all(
            (np.diff(doc_idx[first : first + _CHECK_CHUNK + 1]) >= 0).all()
            for first in range(0, len(doc_idx), _CHECK_CHUNK)
        )
        if not (len(doc_idx) and doc_idx[0] == 0 and doc_idx[-1] == len(self) and monotonic):
            raise DataError(f"{idx_path}: corrupt, its document index does not increase from 0 to {len(self)}")
        if end != files.tokens.nbytes:
            raise DataError(
                f"{data_file(self.prefix, '.bin')}: {files.tokens.nbytes} bytes, but its .idx expects {end}: "
                "it is truncated or belongs to another .idx"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.get(index)

    def check_files(self) -> None:
        """Raise DataError, which names the file, if one of the files has become shorter since it was opened."""
        for guard in self._opened().guards:
            guard.check()

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Tokens [offset, offset + length) of sequence `index` (default: to its end), as a view into the file."""
        files = self._opened()
        size = int(files.sizes[index])
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise IndexError(f"tokens [{offset}, {offset + length}) of a sequence of {size}")
        start = int(files.pointers[index]) // self.dtype.itemsize + offset
        return files.tokens[start : start + length]

    @property
    def tokens(self) -> np.ndarray:
        """All tokens in file order as a flat view into the file."""
        return self._opened().tokens

    def __getstate__(self) -> dict[str, Any]:
        return {"prefix": self.prefix, "dtype": self.dtype, "_bytes": self._bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # the process that pickled it has verified the files
        self._opened = Lazy(self._open)


@dataclass(frozen=True)
class _Files:
    """The open files: arrays that are mapped from them, and guards."""

    sizes: np.ndarray
    pointers: np.ndarray
    doc_idx: np.ndarray
    tokens: np.ndarray
    guards: tuple[FileGuard, FileGuard]


def _map_file(path: Path) -> tuple[np.ndarray, FileGuard]:
    """Bytes of a file as a read-only array. Empty files are handled separately because mmap refuses them."""
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8), FileGuard(path, None)
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    return mapped.view(np.ndarray), FileGuard(path, mapped)


def _read_header(raw: np.ndarray, path: Path) -> tuple[np.dtype, int, int]:
    """Read token dtype, number of sequences and number of document-index entries. Checks the file's length."""
    if raw.size < _HEADER.size:
        raise DataError(f"{path}: truncated, {raw.size} bytes is shorter than a header")
    magic, version, code, n, d = _HEADER.unpack(raw[: _HEADER.size].tobytes())
    if magic != MAGIC:
        raise DataError(f"{path}: not an index of token data (its magic is {magic!r}, not {MAGIC!r})")
    if version != VERSION:
        raise DataError(f"{path}: version {version} of the format is not supported, only {VERSION}")
    if code not in DTYPES:
        raise DataError(f"{path}: corrupt, no dtype has code {code}")
    expected = _HEADER.size + 12 * n + 8 * d
    if raw.size != expected:
        raise DataError(f"{path}: truncated or corrupt, {raw.size} bytes, but its header expects {expected}")
    return DTYPES[code], n, d


class IndexedDatasetBuilder:
    """Writes `<prefix>.bin` and `<prefix>.idx`.

    The files have temporary names until `finalize`, so an interrupted or failed build keeps existing files. Use it in
    a `with` block, which cleans up after an exception. Raises DataError if a token or the vocabulary does not fit
    `dtype`, or if the files cannot be written.
    """

    def __init__(self, prefix: str | Path, dtype: Any, vocab_size: int | None = None) -> None:
        self.prefix = data_file(prefix, "")
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if self.dtype not in DTYPES.values():
            raise DataError(f"{self.prefix}: the format has no dtype {self.dtype.name}")
        if vocab_size is not None:
            check_dtype_holds(self.dtype, vocab_size, self.prefix)
        self._sizes, self._doc_idx = array("i"), array("q", [0])
        parent, tag = self.prefix.parent, f"{self.prefix.name}.{os.getpid()}.tmp"
        self._temporary = {suffix: parent / f".{tag}{suffix}" for suffix in (".bin", ".idx")}
        with self._converting_errors():
            parent.mkdir(parents=True, exist_ok=True)
            self._bin: IO[bytes] | None = open(self._temporary[".bin"], "wb", buffering=1 << 20)

    def add_item(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append one sequence of token ids."""
        items = np.asarray(tokens)
        if items.ndim != 1:
            raise ValueError(f"expected a sequence of tokens with one dimension, got {items.ndim}")
        self._append(items, [len(items)])

    def add_documents(self, tokens: np.ndarray, sizes: Sequence[int] | np.ndarray) -> None:
        """Append documents of one sequence each. `tokens` [sum(sizes)] contains them one after another."""
        first = len(self._sizes)
        self._append(tokens, sizes)
        self._doc_idx.extend(range(first + 1, len(self._sizes) + 1))

    def _append(self, tokens: np.ndarray, sizes: Sequence[int] | np.ndarray) -> None:
        assert self._bin is not None, "finalized"
        if tokens.size and tokens.dtype != self.dtype and self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            for extreme in (int(tokens.min()), int(tokens.max())):
                if not limits.min <= extreme <= limits.max:
                    raise DataError(f"{self.prefix}: token id {extreme} does not fit dtype {self.dtype.name}")
        if int(np.sum(sizes)) != tokens.size:
            raise ValueError(f"sizes add up to {np.sum(sizes)}, but there are {tokens.size} tokens")
        with self._converting_errors():
            self._bin.write(tokens.astype(self.dtype, copy=False).tobytes())
        self._sizes.extend(int(size) for size in sizes)

    def end_document(self) -> None:
        """End a document, which consists of the sequences added since the last call."""
        self._doc_idx.append(len(self._sizes))

    def merge(self, prefix: str | Path) -> None:
        """Append all sequences and documents of another dataset of the same dtype."""
        assert self._bin is not None, "finalized"
        other = IndexedDataset(prefix)
        if other.dtype != self.dtype:
            raise DataError(
                f"{prefix}: dtype {other.dtype.name} cannot be merged into {self.dtype.name} of {self.prefix}"
            )
        first = len(self._sizes)
        with self._converting_errors():
            for start in range(0, other.tokens.size, 1 << 24):
                self._bin.write(other.tokens[start : start + (1 << 24)].tobytes())
        self._sizes.frombytes(other.sizes.astype("=i4").tobytes())
        self._doc_idx.frombytes((other.doc_idx[1:] + first).astype("=i8").tobytes())

    def finalize(self) -> None:
        """Write the index, flush both files to disk and rename them to their final names."""
        assert self._bin is not None, "finalized"
        if self._doc_idx[-1] != len(self._sizes):
            self.end_document()
        with self._converting_errors():
            with open(self._temporary[".idx"], "wb") as idx:
                self._write_index(idx)
                _sync(idx)
            _sync(self._bin)
            self._bin.close()
            # A kill between the two renames must not leave an old index with new tokens.
            data_file(self.prefix, ".idx").unlink(missing_ok=True)
            for suffix in (".bin", ".idx"):
                os.replace(self._temporary[suffix], data_file(self.prefix, suffix))
        self._bin = None

    def _write_index(self, idx: IO[bytes]) -> None:
        sizes = np.frombuffer(self._sizes, np.intc).astype("<i4")
        pointers = np.zeros(len(sizes), "<i8")
        np.cumsum(sizes[:-1].astype(np.int64) * self.dtype.itemsize, out=pointers[1:])
        doc_idx = np.frombuffer(self._doc_idx, np.int64).astype("<i8")
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        idx.write(_HEADER.pack(MAGIC, VERSION, code, len(sizes), len(doc_idx)))
        for part in (sizes, pointers, doc_idx):
            idx.write(part.tobytes())

    def abort(self) -> None:
        """Discard the written tokens. Existing files at `prefix` stay unchanged."""
        if self._bin is not None:
            try:
                self._bin.close()
            except OSError:  # flushing to a full disk fails again, but the file is closed
                pass
            self._bin = None
        for path in self._temporary.values():
            path.unlink(missing_ok=True)

    def __enter__(self) -> IndexedDatasetBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self._bin is not None:
            self.abort()

    def _converting_errors(self) -> _OSErrorConverter:
        return _OSErrorConverter(self)


class _OSErrorConverter:
    """Converts an OSError while writing to a DataError, after cleaning up."""

    def __init__(self, builder: IndexedDatasetBuilder) -> None:
        self.builder = builder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            if hasattr(self.builder, "_bin"):
                self.builder.abort()
            raise DataError(f"{self.builder.prefix}: cannot write: {error.strerror or error}") from error


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
