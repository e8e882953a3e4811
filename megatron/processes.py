"""Worker processes of one host: a pool of them, and what each does first."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from megatron.errors import UserError


@contextlib.contextmanager
def process_pool(
    workers: int, start: Callable[..., None], *arguments: Any, died: UserError
) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes that first call `start(*arguments)`, and end with this one, however it ends.

    Raises `died` where one of them was killed. What is not begun when the block ends is dropped.
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


def _begin(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _end_with_parent()
    start(*arguments)


def _end_with_parent() -> None:
    """Have this process killed when the one that started it is gone: else it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def counter() -> Any:
    """A number that the processes of a pool share, for `share_machine`."""
    return multiprocessing.get_context("spawn").Value("i", 0)


def share_machine(index: Any, workers: int) -> None:
    """Set up this process as worker `index` of `workers`: threads and devices are shared out among them.

    index: a number, or a `counter()` that counts the processes of a pool as they start.
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
