"""Distributed start-up of one worker process."""

from __future__ import annotations

import atexit
import logging
import os
import random
import socket
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Runtime:
    """Where this process stands: its rank among all and on this host, and its device."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over all processes, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
            value /= self.world_size
        return value

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def initialize_megatron(distributed_backend: str = "nccl", seed: int = 1234) -> Runtime:
    """Join the process group that the launcher describes in the environment, or make one of a single process.

    Without a GPU, gloo takes nccl's place. Called again in one process, it only seeds again.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if world_size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size), ("LOCAL_RANK", local_rank)):
        os.environ.setdefault(name, str(value))
    import deepspeed  # seconds: only where training starts

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Only DeepSpeed's inference uses this op. Compiling it takes 40 s, and the lock of a build that was killed makes
    # every later process wait forever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if has_gpu:
        torch.cuda.set_device(local_rank)
    if not torch.distributed.is_initialized():
        atexit.register(shutdown)  # not at the end of a run: one process may make several, on one group
    backend = distributed_backend if has_gpu or distributed_backend != "nccl" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    seed_all(seed + rank)
    return Runtime(rank, world_size, local_rank, torch.device("cuda", local_rank) if has_gpu else torch.device("cpu"))


def seed_all(seed: int) -> None:
    """Seed the generators that dropout and data augmentation draw from; initial weights have their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def shutdown() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
