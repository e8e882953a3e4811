"""Sampler of this rank's microbatches, and the torch loader that reads them."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from megatron.errors import ConfigError, DataError, UserError, first_line
from megatron.signals import STOP_SIGNALS, signal_at_parents_end

T = TypeVar("T")


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields the sample indices of each microbatch [micro_batch_size] of one data-parallel rank.

    Global step s covers samples [s * global_batch_size, (s + 1) * global_batch_size) under every layout. Within a
    step, microbatch m of rank r has the samples from (m * dp_size + r) * micro_batch_size on. The microbatches of all
    ranks, ordered by m and then by r, are the global batch in its order. Starts after `consumed_samples` and ends at
    the last whole global batch. Raises ConfigError if the global batch is not a multiple of micro_batch_size * dp_size.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        consumed_samples: int = 0,
    ) -> None:
        if min(global_batch_size, micro_batch_size, dp_size) < 1 or not 0 <= dp_rank < dp_size:
            raise ConfigError("batch sizes and the data-parallel size must be positive, and the rank below that size")
        if global_batch_size % (micro_batch_size * dp_size):
            raise ConfigError(
                f"train_batch_size {global_batch_size} is not a multiple of train_micro_batch_size_per_gpu "
                f"{micro_batch_size} x {dp_size} data-parallel ranks"
            )
        if consumed_samples < 0:
            raise ConfigError(f"consumed_samples must not be negative, got {consumed_samples}")
        self.num_samples, self.consumed_samples = num_samples, consumed_samples
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.dp_rank, self.dp_size = dp_rank, dp_size

    @property
    def num_microbatches(self) -> int:
        """Number of microbatches of this rank in a global step."""
        return self.global_batch_size // (self.micro_batch_size * self.dp_size)

    @property
    def num_steps(self) -> int:
        """Number of remaining whole global batches."""
        return max(0, self.num_samples - self.consumed_samples) // self.global_batch_size

    def __len__(self) -> int:
        return self.num_steps * self.num_microbatches

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.num_steps):
            batch_start = self.consumed_samples + step * self.global_batch_size
            for microbatch in range(self.num_microbatches):
                start = batch_start + (microbatch * self.dp_size + self.dp_rank) * self.micro_batch_size
                yield list(range(start, start + self.micro_batch_size))


def collate(samples: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Stack samples to {"text": int64 [micro_batch_size, seq_length + 1]}, and "label" alike if they have it."""
    stacked = torch.from_numpy(np.stack(samples))
    if stacked.ndim == 2:
        return {"text": stacked}
    return {"text": stacked[:, 0].contiguous(), "label": stacked[:, 1].contiguous()}


def leave_signals_to_trainer(worker_id: int) -> None:
    """Let a loader's process outlive a signal to the whole process group: the trainer needs its data for the step.

    It ends with the trainer.
    """
    signal.set_wakeup_fd(-1)  # the trainer's, which this process has inherited
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal_at_parents_end(signal.SIGKILL)


def end_processes() -> None:
    """Kill the loaders' processes that are left at the end of this one, such as after an error.

    multiprocessing asks them to end by SIGTERM, which they ignore, and would wait for them forever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises where a loader's process is killed
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def plain_errors(batches: Iterator[T]) -> Iterator[T]:
    """Iterate over batches of a loader, with errors of its processes as one line.

    torch wraps an error in the traceback of the process, and reports a killed process as a RuntimeError; that becomes a
    DataError.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError as error:
            name = type(error).__name__
            raise type(error)(str(error).rpartition(f"{name}: ")[2].strip()) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(f"num_workers: a process that loads data has ended ({first_line(error)})") from error
        yield batch


def build_loader(
    dataset: object, sampler: GlobalBatchSampler, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, torch.Tensor]]:
    """Build a loader of the batches of `collate` in the sampler's order.

    The order does not depend on `num_workers`. Iterating does not change torch's global random state, which lets a
    resumed run reproduce the uninterrupted one.
    """
    if num_workers > 0:
        atexit.unregister(end_processes)
        atexit.register(end_processes)  # runs before multiprocessing's own, which was registered earlier
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # anything with __len__ and __getitem__
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_signals_to_trainer,
    )
