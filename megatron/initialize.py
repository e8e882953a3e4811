"""Initialise distributed execution in one worker process."""

from __future__ import annotations

import atexit
import logging
import os
import random
import warnings
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore
from torch.distributed.rendezvous import rendezvous

from megatron.errors import ConfigError, first_line
from megatron.mpu import DropoutStreams, Grid, ProcessGroups
from megatron.mpu import registry as mpu_registry
from megatron.neox_arguments.run_config import LaunchConfig, LayoutConfig
from megatron.watchdog import Activity, Watchdog

_COLLECTIVE_TIMEOUT = timedelta(hours=24)  # of torch itself: the watchdog ends a hang, and tells it from long work
_watchdog: Watchdog | None = None


@dataclass(frozen=True)
class Runtime:
    """The global and local rank of this process, its device, its parallel groups, and what it is doing now."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    groups: ProcessGroups
    activity: Activity = field(default_factory=Activity)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Average `value` over all processes in place, and return it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
            value /= self.world_size
        return value

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()


def initialize_megatron(
    distributed_backend: str = "nccl",
    seed: int = 1234,
    model_parallel_size: int = 1,
    pipe_parallel_size: int = 0,
    timeout_minutes: float | None = None,
) -> Runtime:
    """Join the process group described in the launcher's environment, or create one with a single process.

    The data-parallel size is the number of processes divided by the tensor (model) and pipeline parallel sizes.
    Raises ConfigError if it is not an integer. Without a GPU, gloo replaces nccl. A second call in the same process
    with the same layout only sets the seeds again.

    timeout_minutes: time for the processes to find each other. After that, a watchdog ends the job where a rank hangs
    for this long. None: torch's own timeouts, without a watchdog.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size), ("LOCAL_RANK", local_rank)):
        os.environ.setdefault(name, str(value))
    import deepspeed  # takes seconds: only imported when training starts

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed uses deprecated names of torch's collectives. One warning per call site would flood the log.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    skip_shared_memory_op()
    if has_gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"num_gpus: this host has {torch.cuda.device_count()} devices, too few for {local_rank + 1}"
            )
        torch.cuda.set_device(local_rank)
    backend = distributed_backend if has_gpu or distributed_backend != "nccl" else "gloo"
    if not torch.distributed.is_initialized():
        atexit.register(shutdown)  # not at the end of a run: one process can run several on the same group
        if world_size == 1:  # in memory: needs no port, which another process could claim first
            torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        if timeout_minutes is not None and not torch.distributed.is_initialized():
            _join_watched(backend, rank, world_size, timeout_minutes)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        raise _unreachable(rank, error) from None
    groups = _process_groups(Grid.for_world(world_size, model_parallel_size, pipe_parallel_size))
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    activity = _watchdog.activity if _watchdog is not None else Activity()
    runtime = Runtime(rank, world_size, local_rank, device, groups, activity)
    seed_all(seed, groups)
    return runtime


def _join_watched(backend: str, rank: int, world_size: int, timeout_minutes: float) -> None:
    """Create the process group of several processes, with a watchdog from the start."""
    global _watchdog
    limit = timedelta(minutes=timeout_minutes)
    # torch writes its record of collectives to a file where NCCL itself reports a failure
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000" if backend == "nccl" else "0")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(max(60, int(limit.total_seconds()))))
    store, *_ = next(rendezvous("env://", rank, world_size, timeout=limit))
    _watchdog = Watchdog(Activity(), rank, world_size, limit.total_seconds())
    _watchdog.start(store, os.environ["MASTER_ADDR"])
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_COLLECTIVE_TIMEOUT
    )


def _unreachable(rank: int, error: Exception) -> ConfigError:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if "clients" in str(error):
        return ConfigError(
            f"distributed_timeout_minutes: not all processes have reached rank 0 at {address}:{port} in time "
            f"({first_line(error)})"
        )
    if "EADDRINUSE" in str(error) or rank == 0:
        return ConfigError(f"master_port: {port} cannot be used on this host; name another one ({first_line(error)})")
    return ConfigError(
        f"master_addr, master_port: rank {rank} has not reached rank 0 at {address}:{port} ({first_line(error)})"
    )


def start_worker(launch: LaunchConfig, layout: LayoutConfig | None, seed: int = 1234) -> Runtime:
    """Call `initialize_megatron` with the configured values, after setting missing environment variables.

    layout: None if every process holds the whole model.
    """
    os.environ.update(launch.environment)
    if launch.deterministic:
        use_deterministic_algorithms()
    tensor, pipe = (1, 0) if layout is None else (layout.tensor, layout.pipe)
    return initialize_megatron(launch.backend, seed, tensor, pipe, launch.timeout_minutes)


def use_deterministic_algorithms() -> None:
    """Use only algorithms that give the same bits in every run. Call before the first use of a GPU.

    An operation without such an algorithm raises RuntimeError. cuBLAS needs a fixed workspace for it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def skip_shared_memory_op() -> None:
    """Prevent DeepSpeed from compiling its shared-memory collective on CPU hosts. Call before initialisation.

    Only DeepSpeed's inference uses it. Compiling takes 40 s, and the lock of a killed build blocks every later process
    forever.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _process_groups(grid: Grid) -> ProcessGroups:
    if mpu_registry.model_parallel_is_initialized():
        if mpu_registry.process_groups().grid == grid:
            return mpu_registry.process_groups()
        mpu_registry.destroy_model_parallel()
    return mpu_registry.initialize_model_parallel(grid.tensor, grid.pipe)


def dropout_streams(seed: int, groups: ProcessGroups) -> DropoutStreams:
    """Return the random streams of this process for its position in the grid."""
    place = groups.coordinate
    return DropoutStreams(seed, place.tensor, place.data, tp_size=groups.tensor.size, pp_rank=place.pipe)


def seed_all(seed: int, groups: ProcessGroups) -> None:
    """Seed the generators of dropout and data augmentation. Initial weights use separate generators.

    Seeds are equal on tensor-parallel ranks and differ between replicas and pipeline stages.
    """
    streams = dropout_streams(seed, groups)
    random.seed(streams.seed)
    np.random.seed(streams.seed % 2**32)
    streams.start()


def shutdown() -> None:
    """Leave the process group."""
    if _watchdog is not None:
        _watchdog.stop()
    if torch.distributed.is_initialized():
        mpu_registry.destroy_model_parallel()
        torch.distributed.destroy_process_group()
