"""Profile a few updates of a run with torch's profiler, and record the memory of the device."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.monitoring.base import Record

if TYPE_CHECKING:
    from torch.profiler import profile

logger = logging.getLogger(__name__)

SNAPSHOT = "mem_snapshot.pickle"
_MAX_EVENTS = 100_000  # allocations in the memory history


class ProfilerMonitor:
    """Traces the updates `first` + 1 to `last` of this process, and then writes the memory history of its device.

    traces: folder of the trace, which TensorBoard and chrome://tracing read; None for no trace. memory: folder of
    `mem_snapshot.pickle`, which pytorch.org/memory_viz shows; None for no history. Only CUDA devices have one.
    The history starts where the monitor is made, so that it also holds the weights of a model that is built later.
    """

    def __init__(self, first: int, last: int, *, traces: Path | None, memory: Path | None, rank: int = 0) -> None:
        import torch

        self.first, self.last, self.rank = first, last, rank
        self.traces = traces
        self.memory = memory if rank == 0 and torch.cuda.is_available() else None
        if memory is not None and rank == 0 and self.memory is None:
            logger.warning("memory_profiling: torch records no memory history of a CPU; no snapshot is written")
        self._running: profile | None = None
        if self.memory is not None:
            torch.cuda.memory._record_memory_history(max_entries=_MAX_EVENTS)

    def start(self, header: Mapping[str, Any]) -> None:
        pass

    def log(self, record: Record) -> None:
        pass

    def tick(self, step: int) -> None:
        """Begin after update `first`, and write after update `last`."""
        if step == self.first and self.traces is not None:
            self._begin(self.traces)
        if step == self.last:
            self.close()

    def close(self) -> None:
        """Write what has been recorded. Closing twice has no effect."""
        running, self._running = self._running, None
        if running is not None:
            _mark_cuda_range(False)
            running.stop()
        memory, self.memory = self.memory, None
        if memory is not None:
            _write_memory(memory)

    def _begin(self, folder: Path) -> None:
        from torch import profiler

        folder.mkdir(parents=True, exist_ok=True)
        self._running = profiler.profile(
            on_trace_ready=profiler.tensorboard_trace_handler(str(folder), f"rank{self.rank}"),
            record_shapes=True,
            profile_memory=True,
            with_flops=True,
            with_stack=True,
        )
        self._running.start()
        _mark_cuda_range(True)


def _mark_cuda_range(begins: bool) -> None:
    """Tell nsys, if the run is under `nsys profile --capture-range=cudaProfilerApi`, where to record."""
    import torch

    if torch.cuda.is_available():
        mark: Any = torch.cuda.profiler.start if begins else torch.cuda.profiler.stop
        mark()


def _write_memory(folder: Path) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    (folder / SNAPSHOT).write_bytes(pickle.dumps(torch.cuda.memory._snapshot()))
    torch.cuda.memory._record_memory_history(enabled=None)
