"""Interleave several datasets so that every prefix matches their weights as closely as possible."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from megatron.data.blend_order import blend_order
from megatron.data.gpt_dataset import GPTDataset, Located
from megatron.errors import DataError


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
    normalized = normalize_weights(weights)
    # A dataset of weight 0 would tie with one that is not behind, and win if it came first.
    positive = [dataset for dataset, weight in enumerate(normalized) if weight]
    chosen, within = np.empty(num_samples, np.int16), np.empty(num_samples, np.int64)
    blend_order([normalized[dataset] for dataset in positive], chosen, within)
    if len(positive) < len(normalized):
        chosen = np.array(positive, np.int16)[chosen]
    return chosen, within


class BlendedDataset:
    """`num_samples` samples from `datasets` by `weights`. Raises DataError if a dataset is shorter than its share."""

    def __init__(self, datasets: Sequence[GPTDataset], weights: Sequence[float], num_samples: int) -> None:
        if len(datasets) != len(weights):
            raise DataError(f"{len(weights)} data weights for {len(datasets)} data paths: give one weight per path")
        self.datasets = list(datasets)
        self.weights = normalize_weights(weights)
        self.dataset_index, self.sample_index = blend_index(weights, num_samples)
        needed = np.bincount(self.dataset_index, minlength=len(datasets))
        for dataset, need in zip(self.datasets, needed, strict=True):
            if need > len(dataset):
                raise DataError(f"{dataset.indexed.prefix}: {len(dataset)} samples, but the blend needs {need}")

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, index: int) -> np.ndarray:
        dataset = self.datasets[int(self.dataset_index[index])]
        return dataset[int(self.sample_index[index])]

    def locate(self, first: int, count: int) -> list[Located]:
        """Where samples [first, first + count) come from, corpus by corpus. Those of one corpus are consecutive."""
        chosen = self.dataset_index[first : first + count]
        found: list[Located] = []
        for number in np.unique(chosen).tolist():
            within = self.sample_index[first : first + count][chosen == number]
            parts = self.datasets[number].locate(int(within[0]), len(within))
            found += [dataclasses.replace(part, number=number) for part in parts]
        return found
