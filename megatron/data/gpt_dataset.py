"""Samples of `seq_length + 1` tokens from shuffled, concatenated documents, as in Megatron-LM and GPT-NeoX.

Three indices determine the tokens of sample i: the document index (shuffled documents of all epochs), the sample
index (start of each sample in the document index) and the shuffle index (order of the samples).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.guard import FileGuard
from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import DataError
from megatron.files import open_regular, read_json, write_whole

INDEX_VERSION = 2  # part of the names of cached indices; raise it when the meaning of an index changes
_INDICES = ("doc_idx", "sample_idx", "shuffle_idx")
_HASHES = "sha256.json"  # SHA-256 of each index file


@dataclass(frozen=True)
class SampleOrder:
    """The three indices.

    doc_idx [epochs * documents] i32: sequences of the dataset in reading order. sample_idx [samples + 1, 2]: entry of
    `doc_idx` and token offset in it at which each sample starts. shuffle_idx [samples]: order of the samples.
    guards: of the files that the arrays are mapped from.
    """

    doc_idx: np.ndarray
    sample_idx: np.ndarray
    shuffle_idx: np.ndarray
    guards: tuple[FileGuard, ...] = ()

    def check_files(self) -> None:
        """Raise DataError, which names the file, if one of the files has become shorter since it was opened."""
        for guard in self.guards:
            guard.check()


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
    """Dataset whose items are int64 arrays [seq_length + 1]. It has at least `num_samples` over one or more epochs.

    The last token of a sample is the first of the next one in reading order, so every token except the first is a
    target once. `documents` are the sequences of `indexed` to use. The order depends only on the sizes of the
    documents, `num_samples`, `seq_length` and `seed`. Indices are cached in `cache_dir` (default: `index_cache` next
    to the data) if it is writable, and memory-mapped from there.

    Raises DataError if the documents hold fewer than 2 tokens.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        documents: np.ndarray,
        num_samples: int,
        seq_length: int,
        seed: int,
        cache_dir: Path | None = None,
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
        self.indexed = indexed
        self.seq_length = seq_length
        self.order = load_or_build_order(indexed, documents, num_samples, seq_length, seed, cache_dir)

    def __len__(self) -> int:
        return len(self.order.shuffle_idx)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        self.order.check_files()
        self.indexed.check_files()
        sample = int(self.order.shuffle_idx[index])
        (entry, offset), (last_entry, last_offset) = self.order.sample_idx[sample : sample + 2].tolist()
        tokens = np.empty(self.seq_length + 1, np.int64)
        filled = 0
        while entry <= last_entry:
            length = last_offset + 1 - offset if entry == last_entry else None
            piece = self.indexed.get(int(self.order.doc_idx[entry]), offset, length)
            tokens[filled : filled + len(piece)] = piece
            filled += len(piece)
            entry, offset = entry + 1, 0
        return tokens

    def locate(self, first: int, count: int) -> list[Located]:
        """Where samples [first, first + count) come from."""
        found: set[int] = set()
        for sample in self.order.shuffle_idx[first : first + count].tolist():
            (entry, _), (last_entry, _) = self.order.sample_idx[sample : sample + 2].tolist()
            found.update(self.order.doc_idx[entry : last_entry + 1].tolist())
        return [Located(str(self.indexed.prefix), first, count, tuple(sorted(found)))]


def build_order(sizes: np.ndarray, documents: np.ndarray, num_samples: int, seq_length: int, seed: int) -> SampleOrder:
    """Build the indices for at least `num_samples` samples.

    One epoch is that of Megatron-LM, with the same random draws. Further epochs are shuffled one by one; Megatron-LM
    shuffles all but the last one together. So the order of a longer run starts with that of a shorter one, and a run
    can be extended. A sample that crosses the end of an epoch belongs to the next epoch.
    """
    tokens_per_epoch = int(sizes[documents].sum(dtype=np.int64))
    num_epochs = max(1, -(-(num_samples * seq_length + 1) // tokens_per_epoch))
    ends = [(epoch * tokens_per_epoch - 1) // seq_length for epoch in range(1, num_epochs + 1)]
    total = ends[-1]
    doc_idx = np.tile(documents, num_epochs)
    shuffle_idx = np.arange(total, dtype=np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64)
    rng = np.random.RandomState(seed)
    for epoch, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        rng.shuffle(doc_idx[epoch * len(documents) : (epoch + 1) * len(documents)])
        rng.shuffle(shuffle_idx[start:end])
    return SampleOrder(doc_idx, build_sample_idx(sizes[doc_idx], seq_length), shuffle_idx)


def build_sample_idx(lengths: np.ndarray, seq_length: int) -> np.ndarray:
    """Compute the start of each sample in the concatenation of documents of `lengths` tokens.

    Returns [samples + 1, 2]: document (position in `lengths`) and offset in it. Row k is the position of token
    k * seq_length of the concatenation. The rows equal those of Megatron-LM's C++ helper `build_sample_idx`, which
    uses a loop.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    num_samples = (int(ends[-1]) - 1) // seq_length
    # A document ends before sample k starts if ceil(end / seq_length) <= k. Counting these documents finds the first
    # document of all k at once.
    ended_before = np.bincount((ends + (seq_length - 1)) // seq_length, minlength=num_samples + 1)
    entries = np.cumsum(ended_before[: num_samples + 1])
    offsets = np.arange(num_samples + 1, dtype=np.int64) * seq_length
    offsets += lengths[entries] - ends[entries]
    small = max(len(lengths), int(lengths.max())) <= np.iinfo(np.int32).max
    rows = np.empty((num_samples + 1, 2), np.int32 if small else np.int64)
    rows[:, 0], rows[:, 1] = entries, offsets
    rows[0] = 0  # the helper starts at the first document even if it is empty
    return rows


def load_or_build_order(
    indexed: IndexedDataset,
    documents: np.ndarray,
    num_samples: int,
    seq_length: int,
    seed: int,
    cache_dir: Path | None = None,
) -> SampleOrder:
    """Load the order from the cache, or build it and store it there if the folder is writable."""
    folder = (cache_dir or indexed.prefix.parent / "index_cache") / (
        f"{indexed.prefix.name}_{num_samples}ns_{seq_length}sl_{seed}s_{_digest(indexed, documents)}"
    )
    cached = _load_order(folder)
    if cached is not None:
        return cached
    order = build_order(indexed.sizes, documents, num_samples, seq_length, seed)
    return order if not _save_order(order, folder) else _load_order(folder) or order


def _digest(indexed: IndexedDataset, documents: np.ndarray) -> str:
    """Digest of the documents and their lengths. An order depends only on these, num_samples, seq_length and seed."""
    digest = hashlib.blake2b(f"order {INDEX_VERSION}".encode(), digest_size=12)
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
