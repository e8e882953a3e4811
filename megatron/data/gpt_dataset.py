"""Samples of `seq_length + 1` tokens from shuffled documents, as in Megatron-LM and GPT-NeoX.

Three indices determine the tokens of sample i: the document index (shuffled documents of all epochs), the sample
index (start of each sample in the document index) and the shuffle index (order of the samples).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.guard import FileGuard
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.labels import IGNORED
from megatron.data.sample_order import Packing, SampleOrder, build_document_order, build_order
from megatron.errors import DataError
from megatron.files import open_regular, read_json, write_whole

INDEX_VERSION = 2  # part of the names of cached indices; raise it when the meaning of an index changes
_INDICES = ("doc_idx", "sample_idx", "shuffle_idx")
_HASHES = "sha256.json"  # SHA-256 of each index file


@dataclass(frozen=True)
class Located:
    """Consecutive samples of one corpus: its prefix, the first index and the number of samples, and their documents.

    `dataset[i]` is the sample of index i. documents: entries of the .idx file, sorted. number: of the corpus in a
    blend; None without one.
    """

    prefix: str
    first: int
    count: int
    documents: tuple[int, ...]
    number: int | None = None


class GPTDataset:
    """Dataset of at least `num_samples` samples over one or more epochs.

    Items are int64 arrays: tokens [seq_length + 1], or tokens and labels [2, seq_length + 1] if there are `labels` or
    the samples are padded. A label is a token, or negative where it does not count in the loss.

    packing `packed`: documents are joined, and cut into samples. The last token of a sample is the first of the next
    one in reading order, so every token except the first is a target once. `unpacked`: each document is a sample.
    `pack_until_overflow`: each sample holds as many whole documents as fit. Samples of both are padded with tokens that
    do not count. A longer document is cut off if `allow_chopped`, and otherwise left out. So is one of which no label
    counts.

    `documents` are the sequences of `indexed` to use; `labels` has the same sequences. The order depends only on the
    used documents, their sizes, `packing`, `num_samples`, `seq_length` and `seed`. Indices are cached in `cache_dir`
    (default: `index_cache` next to the data) if it is writable, and memory-mapped from there.

    Raises DataError if the documents hold fewer than 2 tokens, or none that can be used.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        documents: np.ndarray,
        num_samples: int,
        seq_length: int,
        seed: int,
        cache_dir: Path | None = None,
        labels: IndexedDataset | None = None,
        packing: Packing = "packed",
        allow_chopped: bool = True,
    ) -> None:
        if indexed.dtype.kind not in "iu":
            raise DataError(f"{indexed.prefix}: holds {indexed.dtype.name}, not token ids")
        documents = np.ascontiguousarray(documents, dtype=np.int32)
        if documents.size and not (0 <= documents.min() and documents.max() < len(indexed)):
            raise IndexError(f"documents must be below {len(indexed)}, the number in {indexed.prefix}")
        if indexed.sizes[documents].sum(dtype=np.int64) < 2:
            raise DataError(
                f"{indexed.prefix}: {documents.size} documents hold fewer than 2 tokens: nothing to train on"
            )
        self.indexed, self.labels = indexed, labels
        self.seq_length, self.packing = seq_length, packing
        if packing != "packed":
            documents = self._usable(documents, allow_chopped)
        self.order = load_or_build_order(indexed, documents, num_samples, seq_length, seed, cache_dir, packing)

    def _usable(self, documents: np.ndarray, allow_chopped: bool) -> np.ndarray:
        """The documents that can be samples. Raises DataError if there are none."""
        limit, sizes = self.seq_length + 1, self.indexed.sizes[documents]
        kept = documents[(sizes > 0) & ((sizes <= limit) | allow_chopped)]
        if self.labels is not None:
            lengths = np.minimum(self.indexed.sizes[kept], limit).tolist()
            counts = [(self.labels.get(i, 0, n) >= 0).any() for i, n in zip(kept.tolist(), lengths, strict=True)]
            kept = kept[np.array(counts, bool)]
        if not len(kept):
            longer = int((sizes > limit).sum())
            raise DataError(
                f"{self.indexed.prefix}: none of {len(documents)} documents can be a sample with pack_impl"
                f" {self.packing}: {longer} are longer than seq_length + 1 = {limit} tokens, and the others have no"
                " token that counts in the loss; check the labels, increase seq_length, or set allow_chopped: true"
            )
        return np.asarray(kept)

    def __len__(self) -> int:
        return len(self.order.shuffle_idx)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        self.order.check_files()
        pieces = list(self._pieces(int(self.order.shuffle_idx[index])))
        tokens = self._read(self.indexed, pieces)
        if self.packing == "packed" and self.labels is None:
            return tokens
        rows = np.zeros((2, self.seq_length + 1), np.int64)
        rows[1] = IGNORED
        rows[:, : len(tokens)] = tokens
        if self.labels is not None:
            rows[1, : len(tokens)] = self._read(self.labels, pieces)
        return rows

    def _pieces(self, sample: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield document, offset and length of the parts of a sample. Length None: up to the end of the document."""
        (entry, offset), (last_entry, last_offset) = self.order.sample_idx[sample : sample + 2].tolist()
        for document in self.order.doc_idx[entry:last_entry].tolist():
            yield document, offset, None
            offset = 0
        if self.packing == "packed":
            yield int(self.order.doc_idx[last_entry]), offset, last_offset + 1 - offset

    def _read(self, indexed: IndexedDataset, pieces: list[tuple[int, int, int | None]]) -> np.ndarray:
        """Tokens of the pieces, at most seq_length + 1: int64."""
        indexed.check_files()
        return np.concatenate([indexed.get(*piece) for piece in pieces])[: self.seq_length + 1].astype(np.int64)

    def locate(self, first: int, count: int) -> list[Located]:
        """Where samples [first, first + count) come from."""
        found: set[int] = set()
        for sample in self.order.shuffle_idx[first : first + count].tolist():
            found.update(document for document, _, _ in self._pieces(sample))
        return [Located(str(self.indexed.prefix), first, count, tuple(sorted(found)))]


def load_or_build_order(
    indexed: IndexedDataset,
    documents: np.ndarray,
    num_samples: int,
    seq_length: int,
    seed: int,
    cache_dir: Path | None = None,
    packing: Packing = "packed",
) -> SampleOrder:
    """Load the order from the cache, or build it and store it there if the folder is writable."""
    folder = (cache_dir or indexed.prefix.parent / "index_cache") / (
        f"{indexed.prefix.name}_{num_samples}ns_{seq_length}sl_{seed}s_{_digest(indexed, documents, packing)}"
    )
    cached = _load_order(folder)
    if cached is not None:
        return cached
    if packing == "packed":
        order = build_order(indexed.sizes, documents, num_samples, seq_length, seed)
    else:
        order = build_document_order(indexed.sizes, documents, num_samples, seq_length, seed, packing)
    return order if not _save_order(order, folder) else _load_order(folder) or order


def _digest(indexed: IndexedDataset, documents: np.ndarray, packing: Packing) -> str:
    """Digest of the packing, the documents and their lengths.

    An order depends only on these, num_samples, seq_length and seed. Labels choose the documents.
    """
    digest = hashlib.blake2b(f"order {INDEX_VERSION} {packing}".encode(), digest_size=12)
    digest.update(documents.tobytes())
    digest.update(indexed.sizes[documents].tobytes())
    return digest.hexdigest()


def _load_order(folder: Path) -> SampleOrder | None:
    """Load the cached order memory-mapped. None if it is missing, or if any byte differs from what was stored."""
    try:
        if read_json(folder / _HASHES, 10_000) != _hashes(folder):
            return None
        mapped = {folder / f"{name}.npy": np.load(folder / f"{name}.npy", mmap_mode="r") for name in _INDICES}
    except (OSError, ValueError, EOFError):
        return None
    guards = tuple(FileGuard(path, array) for path, array in mapped.items())
    doc_idx, sample_idx, shuffle_idx = (array.view(np.ndarray) for array in mapped.values())
    order = SampleOrder(doc_idx, sample_idx, shuffle_idx, guards)
    return order if order.sample_idx.shape == (len(order.shuffle_idx) + 1, 2) else None


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each index by name. Raises OSError."""
    hashes = {}
    for name in _INDICES:
        with open_regular(folder / f"{name}.npy") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _save_order(order: SampleOrder, folder: Path) -> bool:
    """Store the order in the cache atomically. Returns True on success. Several processes can do this at once."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock out other users of a shared corpus
        for name in _INDICES:
            with open(temporary / f"{name}.npy", "wb") as file:
                np.save(file, getattr(order, name))
                file.flush()
                os.fsync(file.fileno())
        write_whole(temporary / _HASHES, json.dumps(_hashes(temporary)))
        if folder.exists() and _load_order(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        return True
    except OSError:  # read-only folder, full disk, or another process was first: use the order in memory
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        return False
