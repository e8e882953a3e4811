"""Processes that share one host, each training a run of one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from typing import Any


def share_machine(index: Any, workers: int) -> None:
    """Set up this process as worker `index` of `workers`: threads and devices are shared out among them.

    index: a number, or a multiprocessing.Value that counts the processes of a pool as they start.
    """
    if not isinstance(index, int):
        with index.get_lock():
            index.value += 1
            index = index.value - 1
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # of whatever launcher started us
        os.environ.pop(name, None)
    import torch

    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(index % torch.cuda.device_count())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))


def end_with_parent() -> None:
    """Have this process of a pool killed when the one that started it is gone: else it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
