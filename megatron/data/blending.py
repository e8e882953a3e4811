"""Interleave several datasets so that every prefix matches their weights as closely as possible."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron.data.blend_order import blend_order
from megatron.data.gpt_dataset import GPTDataset, Located
from megatron.data.index_cache import StoredArrays, load_or_store
from megatron.errors import DataError

BLEND_VERSION = 1  # part of the digest of cached blends; raise it when the rule changes
_INDICES = {"dataset_index": np.int16, "sample_index": np.int64}
_PART = 1 << 24


def normalize_weights(weights: Sequence[float]) -> list[float]:
    """Scale weights to a sum of 1. Raises DataError unless they are finite, not negative and not all zero."""
    total = math.fsum(weights)
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not total > 0:
        raise DataError(f"data weights {list(weights)} must be finite, not negative, and not all zero")
    return [weight / total for weight in weights]


def weights_by_num_documents(num_documents: Sequence[int], alpha: float = 1.0) -> list[float]:
    """Weights from the number of documents n_d of each dataset, as in GPT-NeoX's `weight-by-num-documents`.

    With p_d = n_d / sum(n): weight_d ~ p_d^alpha / sum(p^alpha) * (1 - p_d), normalized. alpha < 1 raises the weight
    of small datasets (multinomial smoothing of Conneau et al. 2019, arXiv:1911.02116, section 3.1). A single dataset
    has weight 1.
    """
    if len(num_documents) == 1:
        return [1.0]  # the formula would be 0 / 0
    total = sum(num_documents)
    if total <= 0:
        raise DataError("weight-by-num-documents: the datasets hold no documents")
    shares = np.asarray(num_documents, dtype=np.float64) / total
    smoothed = np.where(shares > 0, shares**alpha, 0.0)
    return normalize_weights((smoothed / smoothed.sum() * (1 - shares)).tolist())


def blend_index(weights: Sequence[float], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """For each sample i, return its dataset [num_samples] i16 and its index in that dataset [num_samples] i64.

    Megatron-LM's rule: each sample comes from the dataset that is furthest behind, that is, the one with the largest
    weight * max(i, 1) - (samples taken so far), and the first one of equals. A longer blend starts with the shorter
    one.
    """
    chosen, within = np.empty(num_samples, np.int16), np.empty(num_samples, np.int64)
    _fill(normalize_weights(weights), chosen, within, lambda done: None)
    return chosen, within


def _fill(weights: list[float], chosen: np.ndarray, within: np.ndarray, on_progress: Callable[[int], None]) -> None:
    # A dataset of weight 0 would tie with one that is not behind, and win if it came first.
    positive = [dataset for dataset, weight in enumerate(weights) if weight]
    blend_order([weights[dataset] for dataset in positive], chosen, within, on_progress)
    if len(positive) < len(weights):
        names = np.array(positive, np.int16)
        for part in _parts(chosen):
            part[:] = names[part]


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of consecutive parts, because copies of a whole order might not fit in memory."""
    return (array[first : first + _PART] for first in range(0, len(array), _PART))


class BlendedDataset:
    """`num_samples` samples from `datasets` by `weights`. Raises DataError if a dataset is shorter than its share.

    The order is cached in `cache_dir` if that is writable, and mapped into memory from there. It depends only on the
    weights and `num_samples`. on_progress: called with the number of samples whose place is known.
    """

    def __init__(
        self,
        datasets: Sequence[GPTDataset],
        weights: Sequence[float],
        num_samples: int,
        cache_dir: Path | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        if len(datasets) != len(weights):
            raise DataError(f"{len(weights)} data weights for {len(datasets)} data paths: give one weight per path")
        self.datasets = list(datasets)
        self.weights = normalize_weights(weights)
        self._length = num_samples
        self._stored = _load_or_build(self.weights, num_samples, cache_dir, on_progress)
        needed = np.zeros(len(datasets), np.int64)
        for part in _parts(self.dataset_index):
            needed += np.bincount(part, minlength=len(datasets))
        for dataset, need in zip(self.datasets, needed, strict=True):
            if need > len(dataset):
                raise DataError(f"{dataset.indexed.prefix}: {len(dataset)} samples, but the blend needs {need}")

    @property
    def dataset_index(self) -> np.ndarray:
        """Dataset of each sample [num_samples] i16."""
        return self._stored()[0]["dataset_index"]

    @property
    def sample_index(self) -> np.ndarray:
        """Index of each sample in its dataset [num_samples] i64."""
        return self._stored()[0]["sample_index"]

    def files_exist(self) -> bool:
        """Whether this host has the files of the order and of the first dataset."""
        return self._stored.files_exist() and self.datasets[0].files_exist()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        arrays, guards = self._stored()
        for guard in guards:
            guard.check()
        return self.datasets[int(arrays["dataset_index"][index])][int(arrays["sample_index"][index])]

    def locate(self, first: int, count: int) -> list[Located]:
        """Where samples [first, first + count) come from, corpus by corpus. Those of one corpus are consecutive."""
        chosen = self.dataset_index[first : first + count]
        found: list[Located] = []
        for number in np.unique(chosen).tolist():
            within = self.sample_index[first : first + count][chosen == number]
            parts = self.datasets[number].locate(int(within[0]), len(within))
            found += [dataclasses.replace(part, number=number) for part in parts]
        return found


def _load_or_build(
    weights: list[float], num_samples: int, cache_dir: Path | None, on_progress: Callable[[int], None]
) -> StoredArrays:
    def build() -> dict[str, np.ndarray]:
        arrays = {name: np.empty(num_samples, dtype) for name, dtype in _INDICES.items()}
        _fill(weights, arrays["dataset_index"], arrays["sample_index"], on_progress)
        return arrays

    def write(folder: Path) -> None:
        chosen, within = (
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num_samples,))
            for name, dtype in _INDICES.items()
        )
        _fill(weights, chosen.view(np.ndarray), within.view(np.ndarray), on_progress)
        chosen.flush()
        within.flush()

    if cache_dir is None or not num_samples:
        return StoredArrays(tuple(_INDICES), None, build())
    digest = hashlib.blake2b(f"blend {BLEND_VERSION} {num_samples}".encode(), digest_size=12)
    digest.update(np.array(weights, "<f8").tobytes())
    folder = cache_dir / f"blend_{len(weights)}ds_{num_samples}ns_{digest.hexdigest()}"
    return load_or_store(folder, tuple(_INDICES), write, build)
