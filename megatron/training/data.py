"""Datasets and loaders of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from megatron.data.data_utils import build_train_valid_test_datasets
from megatron.data.fingerprint import corpus_fingerprint, data_prefixes
from megatron.data.loader import GlobalBatchSampler, build_loader
from megatron.errors import ConfigError
from megatron.initialize import Runtime
from megatron.neox_arguments import NeoXArgs


class RunData:
    """Train, validation and test data of a run, cut into this process's microbatches.

    Global step s always covers samples s * train_batch_size onwards. An evaluation reads the same samples every time.
    """

    def __init__(self, args: NeoXArgs, runtime: Runtime, vocab_size: int, train_iters: int) -> None:
        if args.data_path is None and args.train_data_paths is None:
            raise ConfigError(
                "neither data-path nor train-data-paths is given; `python prepare_data.py` makes a corpus"
            )
        evaluation = args.eval_iters * args.train_batch_size
        self._args, self._runtime = args, runtime
        sizes = (
            train_iters * args.train_batch_size,
            evaluation if args.do_valid else 0,
            evaluation if args.do_test else 0,
        )
        if runtime.is_first:  # builds the cached indices, which the others then find
            self._datasets = self._build(sizes, vocab_size)
        runtime.barrier()
        if not runtime.is_first:
            self._datasets = self._build(sizes, vocab_size)

    def _build(self, sizes: tuple[int, int, int], vocab_size: int) -> tuple[Any, Any, Any]:
        args = self._args
        return build_train_valid_test_datasets(
            data_path=args.data_path,
            train_data_paths=args.train_data_paths,
            valid_data_paths=args.valid_data_paths,
            test_data_paths=args.test_data_paths,
            train_data_weights=args.train_data_weights,
            valid_data_weights=args.valid_data_weights,
            test_data_weights=args.test_data_weights,
            weight_by_num_documents=args.weight_by_num_documents,
            weighted_sampler_alpha=args.weighted_sampler_alpha,
            split=args.split,
            seq_length=args.seq_length,
            seed=args.seed,
            num_samples=sizes,
            vocab_size=vocab_size,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Bytes and SHA-256 of the corpus."""
        args = self._args
        return corpus_fingerprint(
            data_prefixes(args.data_path, args.train_data_paths, args.valid_data_paths, args.test_data_paths)
        )

    def train_batches(self, consumed_samples: int = 0) -> Iterator[dict[str, Tensor]]:
        """Microbatches of training from the given sample on."""
        return self._batches(0, consumed_samples)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]] | None:
        """Microbatches of `valid` or `test`; None where the run has none."""
        index = ("train", "valid", "test").index(split)
        return None if self._datasets[index] is None else self._batches(index, 0)

    def _batches(self, index: int, consumed_samples: int) -> Iterator[dict[str, Tensor]]:
        args, runtime, dataset = self._args, self._runtime, self._datasets[index]
        sampler = GlobalBatchSampler(
            len(dataset),
            args.train_batch_size,
            args.train_micro_batch_size_per_gpu,
            dp_rank=runtime.groups.data.rank,
            dp_size=runtime.groups.data.size,
            consumed_samples=consumed_samples,
        )
        workers = args.num_workers if index == 0 else 0
        return iter(build_loader(dataset, sampler, workers, pin_memory=runtime.device.type == "cuda"))
