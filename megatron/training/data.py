"""Datasets and loaders of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from megatron.checkpointing.collective import from_rank_0
from megatron.data.data_utils import SPLITS, Dataset, build_train_valid_test_datasets
from megatron.data.fingerprint import corpus_fingerprint
from megatron.data.gpt_dataset import Located
from megatron.data.loader import GlobalBatchSampler, build_loader, plain_errors
from megatron.initialize import Runtime
from megatron.neox_arguments.run_config import BatchConfig, DataConfig
from megatron.training.shared import built_once

Datasets = tuple[Dataset | None, Dataset | None, Dataset | None]


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Bytes and SHA-256 of the corpus. Collective: the first process reads it."""
    return from_rank_0(lambda: corpus_fingerprint(config.prefixes))


def build_datasets(config: DataConfig, runtime: Runtime, vocab_size: int, samples: tuple[int, int, int]) -> Datasets:
    """Build the training, validation and test data sets. With 0 samples a data set is not built.

    All processes must call it. The first one verifies the files and builds the cached indices; the others map them.
    """
    return built_once(runtime, lambda: _build(config, vocab_size, samples), _files_exist)


def _files_exist(datasets: Datasets) -> bool:
    return all(dataset is None or dataset.files_exist() for dataset in datasets)


def _build(config: DataConfig, vocab_size: int, samples: tuple[int, int, int]) -> Datasets:
    return build_train_valid_test_datasets(
        data_path=config.path,
        train_data_paths=config.train.paths,
        valid_data_paths=config.valid.paths,
        test_data_paths=config.test.paths,
        train_data_weights=config.train.weights,
        valid_data_weights=config.valid.weights,
        test_data_weights=config.test.weights,
        weight_by_num_documents=config.weight_by_num_documents,
        weighted_sampler_alpha=config.weighted_sampler_alpha,
        split=config.split,
        seq_length=config.seq_length,
        seed=config.seed,
        num_samples=samples,
        vocab_size=vocab_size,
        train_label_data_paths=config.train.labels,
        valid_label_data_paths=config.valid.labels,
        test_label_data_paths=config.test.labels,
        packing=config.packing,
        allow_chopped=config.allow_chopped,
        on_progress=_Progress(),
    )


class _Progress:
    """Prints the last of many reports of progress every 10 s."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() >= self._last + 10:
            print(f"building the data set: {text}", flush=True)
            self._last = time.monotonic()


class RunData:
    """Training, validation and test data of a run, in microbatches of this process.

    A step reads the batch.size samples that follow those of the steps before it. Every evaluation reads the same
    samples.
    """

    def __init__(
        self, config: DataConfig, runtime: Runtime, vocab_size: int, batch: BatchConfig, samples: tuple[int, int, int]
    ) -> None:
        """samples: numbers of samples of training, one validation and one test. With 0 the data set is not built."""
        self._config, self._runtime, self._batch = config, runtime, batch
        self._datasets = build_datasets(config, runtime, vocab_size, samples)

    def train_batches(self, consumed_samples: int = 0) -> Iterator[dict[str, Tensor]]:
        """Iterate over training microbatches, from the given sample on. Raises ValueError without training data."""
        train = self._datasets[0]
        if train is None:
            raise ValueError("the run has no training samples")
        return self._batches(train, consumed_samples, self._config.num_workers)

    def locate(self, first: int, count: int) -> list[Located]:
        """Where the training samples [first, first + count) of the run's order come from."""
        train = self._datasets[0]
        return [] if train is None else train.locate(first, count)

    def has(self, split: str) -> bool:
        """Whether the run has data of `valid` or `test`."""
        return self._datasets[SPLITS.index(split)] is not None

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]] | None:
        """Iterate over microbatches of `valid` or `test`. Returns None if the run has no such data."""
        dataset = self._datasets[SPLITS.index(split)]
        return None if dataset is None else self._batches(dataset, 0, workers=0)

    def _batches(self, dataset: Dataset, consumed_samples: int, workers: int) -> Iterator[dict[str, Tensor]]:
        data = self._runtime.groups.data
        sampler = GlobalBatchSampler(
            len(dataset),
            self._batch.size,
            self._batch.micro,
            dp_rank=data.rank,
            dp_size=data.size,
            consumed_samples=consumed_samples,
        )
        loader = build_loader(dataset, sampler, workers, pin_memory=self._runtime.device.type == "cuda")
        return plain_errors(iter(loader))
