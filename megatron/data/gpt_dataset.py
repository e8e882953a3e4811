"""Samples of `seq_length + 1` tokens from shuffled documents, as in Megatron-LM and GPT-NeoX.

Three indices determine the tokens of sample i: the document index (shuffled documents of all epochs), the sample
index (start of each sample in the document index) and the shuffle index (order of the samples).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.index_cache import StoredArrays, load_or_store
from megatron.data.indexed_dataset import IndexedDataset, data_file
from megatron.data.labels import IGNORED
from megatron.data.sample_order import Packing, SampleOrder, build_document_order, build_order
from megatron.errors import DataError

INDEX_VERSION = 2  # part of the names of cached indices; raise it when the meaning of an index changes
_INDICES = ("doc_idx", "sample_idx", "shuffle_idx")


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
        self._stored = load_or_build_order(indexed, documents, num_samples, seq_length, seed, cache_dir, packing)
        self._length = len(self.order.shuffle_idx)

    @property
    def order(self) -> SampleOrder:
        """The indices. Their files are opened when they are needed."""
        arrays, guards = self._stored()
        return SampleOrder(**arrays, guards=guards)

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

    def files_exist(self) -> bool:
        """Whether this host has the files of the order and of the data."""
        return self._stored.files_exist() and data_file(self.indexed.prefix, ".bin").is_file()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        order = self.order
        order.check_files()
        pieces = list(self._pieces(order, int(order.shuffle_idx[index])))
        tokens = self._read(self.indexed, pieces)
        if self.packing == "packed" and self.labels is None:
            return tokens
        rows = np.zeros((2, self.seq_length + 1), np.int64)
        rows[1] = IGNORED
        rows[:, : len(tokens)] = tokens
        if self.labels is not None:
            rows[1, : len(tokens)] = self._read(self.labels, pieces)
        return rows

    def _pieces(self, order: SampleOrder, sample: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield document, offset and length of the parts of a sample. Length None: up to the end of the document."""
        (entry, offset), (last_entry, last_offset) = order.sample_idx[sample : sample + 2].tolist()
        for document in order.doc_idx[entry:last_entry].tolist():
            yield document, offset, None
            offset = 0
        if self.packing == "packed":
            yield int(order.doc_idx[last_entry]), offset, last_offset + 1 - offset

    def _read(self, indexed: IndexedDataset, pieces: list[tuple[int, int, int | None]]) -> np.ndarray:
        """Tokens of the pieces, at most seq_length + 1: int64."""
        indexed.check_files()
        return np.concatenate([indexed.get(*piece) for piece in pieces])[: self.seq_length + 1].astype(np.int64)

    def locate(self, first: int, count: int) -> list[Located]:
        """Where samples [first, first + count) come from."""
        found: set[int] = set()
        order = self.order
        for sample in order.shuffle_idx[first : first + count].tolist():
            found.update(document for document, _, _ in self._pieces(order, sample))
        return [Located(str(self.indexed.prefix), first, count, tuple(sorted(found)))]


def load_or_build_order(
    indexed: IndexedDataset,
    documents: np.ndarray,
    num_samples: int,
    seq_length: int,
    seed: int,
    cache_dir: Path | None = None,
    packing: Packing = "packed",
) -> StoredArrays:
    """Load the order from the cache, or build it and store it there if the folder is writable."""
    folder = (cache_dir or indexed.prefix.parent / "index_cache") / (
        f"{indexed.prefix.name}_{num_samples}ns_{seq_length}sl_{seed}s_{_digest(indexed, documents, packing)}"
    )

    @functools.cache
    def build() -> dict[str, np.ndarray]:
        if packing == "packed":
            order = build_order(indexed.sizes, documents, num_samples, seq_length, seed)
        else:
            order = build_document_order(indexed.sizes, documents, num_samples, seq_length, seed, packing)
        return {name: getattr(order, name) for name in _INDICES}

    def write(temporary: Path) -> None:
        for name, array in build().items():
            np.save(temporary / f"{name}.npy", array)

    return load_or_store(folder, _INDICES, write, build)


def _digest(indexed: IndexedDataset, documents: np.ndarray, packing: Packing) -> str:
    """Digest of the packing, the documents and their lengths.

    An order depends only on these, num_samples, seq_length and seed. Labels choose the documents.
    """
    digest = hashlib.blake2b(f"order {INDEX_VERSION} {packing}".encode(), digest_size=12)
    digest.update(documents.tobytes())
    digest.update(indexed.sizes[documents].tobytes())
    return digest.hexdigest()
