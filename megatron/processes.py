"""Processes of one host: a pool of workers, and what the kernel knows of a process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from megatron.errors import UserError

S = TypeVar("S")
T = TypeVar("T")


def process_stat(pid: int) -> list[str]:
    """Fields 3, 4, ... of /proc/PID/stat: state, parent, ... (see proc_pid_stat(5)). Raises OSError without one."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name can have spaces and brackets


@contextlib.contextmanager
def process_pool(
    workers: int, start: Callable[..., None], *arguments: Any, died: UserError
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `workers` processes that each call `start(*arguments)` first.

    The workers end when this process ends for any reason. Raises `died` if a worker is killed. Tasks that have not
    started when the block ends are cancelled.
    """
    # Not fork: a forked copy of the thread pools of torch and of the tokenizers library hangs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(start, arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise died from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def map_in_order(
    pool: ProcessPoolExecutor, function: Callable[[S], T], items: Iterable[S], most_pending: int
) -> Iterator[tuple[S, T]]:
    """Yield items and their results in order. At most `most_pending` are in work, which bounds memory."""
    pending: deque[tuple[S, Future[T]]] = deque()
    for item in items:
        pending.append((item, pool.submit(function, item)))
        if len(pending) >= most_pending:
            done, future = pending.popleft()
            yield done, future.result()
    for done, future in pending:
        yield done, future.result()


def _begin(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _end_with_parent()
    start(*arguments)


def _end_with_parent() -> None:
    """Kill this process when its parent is gone. Otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def counter() -> Any:
    """Return a counter shared by the processes of a pool, for `share_machine`."""
    return multiprocessing.get_context("spawn").Value("i", 0)


def share_machine(index: Any, workers: int) -> None:
    """Set up this process as worker `index` of `workers`, with its share of the threads and devices.

    index: a number, or a `counter()` that numbers the processes of a pool as they start.
    """
    if not isinstance(index, int):
        with index.get_lock():
            index.value += 1
            index = index.value - 1
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):  # set by the launcher of this process
        os.environ.pop(name, None)
    import torch

    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(index % torch.cuda.device_count())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))
