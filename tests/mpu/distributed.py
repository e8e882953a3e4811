"""Run a function in several real processes that talk over gloo."""

from __future__ import annotations

import faulthandler
import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.multiprocessing as mp

# The fork server imports these once, in one thread; forking from it is then quick and safe. Spawning would
# import torch anew in every process of every test.
_PRELOAD = ["torch", "torch.distributed", "deepspeed"]


class WorkerFailure(AssertionError):
    """A process failed; the message holds the traceback of the one that failed first."""


def _work(rank: int, size: int, folder: Path, timeout: float, function: Callable[..., Any], args: tuple) -> None:
    import torch
    import torch.distributed as dist

    from megatron.initialize import skip_shared_memory_op

    skip_shared_memory_op()  # some tests start DeepSpeed themselves
    # a process that hangs (a collective that the others do not call) tells where, and dies
    faulthandler.dump_traceback_later(timeout, exit=True)
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",  # no port, so none that another process takes
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        result = function(*args)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()  # nobody closes connections while another still works
        dist.destroy_process_group()
    except BaseException:
        (folder / f"failure{rank}").write_text(f"{time.time_ns()}\n{traceback.format_exc()}")
        os._exit(1)  # without waiting for groups that will never meet again


def _failure(folder: Path, codes: list[int | None]) -> str:
    reports = [path.read_text().split("\n", 1) + [path.name[7:]] for path in folder.glob("failure*")]
    if not reports:
        return f"no traceback; exit codes by rank: {codes}"
    _, text, rank = min(reports)
    return f"rank {rank} of {len(codes)} failed first:\n{text}"


def run(size: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """What `function(*args)` returned on each of `size` ranks, torch.distributed being initialised.

    function: importable by name; it and its results are pickled. WorkerFailure where a rank raises or hangs
    longer than `timeout` seconds; the other ranks are then stopped.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    context: Any = mp.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_work, args=(rank, size, folder, timeout, function, args), daemon=True)
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            deadline = time.monotonic() + timeout + 10.0
            while any(p.exitcode is None for p in processes) and time.monotonic() < deadline:
                if any(p.exitcode for p in processes):
                    break
                time.sleep(0.01)
            codes = [p.exitcode for p in processes]
            if codes != [0] * size:
                raise WorkerFailure(_failure(folder, codes))
            return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(size)]
        finally:
            for process in processes:
                process.kill()
                process.join()
