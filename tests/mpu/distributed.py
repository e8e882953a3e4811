"""Run a function in several real processes that communicate over gloo."""

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

# The fork server imports these once, in one thread, and forking from it is quick and safe. Spawning would
# import torch again in every process of every test.
_PRELOAD = ["torch", "torch.distributed", "deepspeed"]


class WorkerFailure(AssertionError):
    """Raised when a process fails. The message holds the traceback of the process that failed first."""


def _work(rank: int, size: int, folder: Path, timeout: float, function: Callable[..., Any], args: tuple) -> None:
    import torch
    import torch.distributed as dist

    from megatron.initialize import skip_shared_memory_op

    skip_shared_memory_op()  # some tests start DeepSpeed themselves
    # a process that hangs (in a collective that the others do not call) prints its stack and exits
    faulthandler.dump_traceback_later(timeout, exit=True)
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",  # a file, not a port that another process could take
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        result = function(*args)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()  # no process closes its connections while another still works
        dist.destroy_process_group()
    except BaseException:
        report = folder / f"report{rank}"
        report.write_text(f"{time.time_ns()}\n{traceback.format_exc()}")
        report.rename(folder / f"failure{rank}")  # complete as soon as it has this name
        os._exit(1)  # do not wait for the process groups, which will not complete


def _failure(folder: Path, codes: list[int | None]) -> str:
    reports = [path.read_text().split("\n", 1) + [path.name[7:]] for path in folder.glob("failure*")]
    if not reports:
        return f"no traceback; exit codes by rank: {codes}"
    _, text, rank = min(reports)
    return f"rank {rank} of {len(codes)} failed first:\n{text}"


def run(size: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run `function(*args)` on `size` ranks with torch.distributed initialised. Returns the result of each rank.

    function: importable by name; the function and its results are pickled. Raises WorkerFailure and stops the other
    ranks if a rank raises, or hangs longer than `timeout` seconds.
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
