"""Order of the samples of a corpus: which tokens sample i holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron.data.guard import FileGuard

Packing = Literal["packed", "pack_until_overflow", "unpacked"]


@dataclass(frozen=True)
class SampleOrder:
    """The three indices.

    doc_idx [epochs * documents] i32: sequences of the dataset in reading order. sample_idx [samples + 1, 2]: entry of
    `doc_idx` and token offset in it at which each sample starts. shuffle_idx [samples]: order of the samples.
    guards: of the files that the arrays are mapped from.

    Packed end to end, a sample ends with the first token of the next one. Samples of whole documents end before it.
    """

    doc_idx: np.ndarray
    sample_idx: np.ndarray
    shuffle_idx: np.ndarray
    guards: tuple[FileGuard, ...] = ()

    def check_files(self) -> None:
        """Raise DataError, which names the file, if one of the files has become shorter since it was opened."""
        for guard in self.guards:
            guard.check()


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


def build_document_order(
    sizes: np.ndarray, documents: np.ndarray, num_samples: int, seq_length: int, seed: int, packing: Packing
) -> SampleOrder:
    """Build the indices for at least `num_samples` samples of whole documents.

    unpacked: one document per sample. pack_until_overflow: as many documents in a row as fit in seq_length + 1 tokens.
    Documents are shuffled in each epoch, and a sample does not cross its end. So every document is read once per epoch,
    and the order of a longer run starts with that of a shorter one.
    """
    rng = np.random.RandomState(seed)
    epochs: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    samples = 0
    while not epochs or samples < num_samples:
        epoch = documents.copy()
        rng.shuffle(epoch)
        first = np.arange(len(epoch)) if packing == "unpacked" else pack_until_overflow(sizes[epoch], seq_length + 1)
        starts.append(first + len(documents) * len(epochs))
        epochs.append(epoch)
        samples += len(first)
    doc_idx = np.concatenate(epochs)
    sample_idx = np.zeros((samples + 1, 2), np.int64)
    sample_idx[:, 0] = [*np.concatenate(starts), len(doc_idx)]
    return SampleOrder(doc_idx, sample_idx, np.arange(samples))


def pack_until_overflow(lengths: np.ndarray, limit: int) -> np.ndarray:
    """Divide documents of `lengths` tokens into runs of at most `limit` tokens, each as long as possible.

    A longer document is a run of its own. Returns the first document of each run.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = []
    first, before = 0, 0
    while first < len(lengths):
        starts.append(first)
        first = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        before = int(ends[first - 1])
    return np.array(starts, np.int64)
