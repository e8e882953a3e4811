"""The process-wide groups under the names that GPT-NeoX exports from `megatron.mpu`.

`model_parallel` means tensor parallel here, as in GPT-NeoX. Nothing in this package reads the registry:
layers and functions take their group as an argument.
"""

from __future__ import annotations

import torch.distributed as dist

from megatron.mpu.topology import Grid, ProcessGroups

_groups: ProcessGroups | None = None


def initialize_model_parallel(model_parallel_size: int = 1, pipe_parallel_size: int = 0) -> ProcessGroups:
    """Create and register the groups of all processes of torch.distributed. Every process must call it.

    The data-parallel size is the number of processes divided by the other two sizes. Raises ConfigError if they do
    not divide it, and RuntimeError if the groups already exist.
    """
    global _groups
    if _groups is not None:
        raise RuntimeError("model parallelism is already initialised; call destroy_model_parallel() first")
    _groups = ProcessGroups.create(Grid.for_world(dist.get_world_size(), model_parallel_size, pipe_parallel_size))
    return _groups


def process_groups() -> ProcessGroups:
    """Return the registered groups. Raises RuntimeError before `initialize_model_parallel`."""
    if _groups is None:
        raise RuntimeError("model parallelism is not initialised; call initialize_model_parallel() first")
    return _groups


def model_parallel_is_initialized() -> bool:
    return _groups is not None


def destroy_model_parallel() -> None:
    """Remove the groups from the registry."""
    global _groups
    _groups = None


def get_topology() -> Grid:
    return process_groups().grid


def get_model_parallel_group() -> dist.ProcessGroup | None:
    return process_groups().tensor.process_group


def get_model_parallel_rank() -> int:
    return process_groups().tensor.rank


def get_model_parallel_world_size() -> int:
    return process_groups().tensor.size


def get_model_parallel_src_rank() -> int:
    """Global rank of the first member of this tensor-parallel group."""
    return process_groups().tensor.ranks[0]


def get_data_parallel_group() -> dist.ProcessGroup | None:
    return process_groups().data.process_group


def get_data_parallel_rank() -> int:
    return process_groups().data.rank


def get_data_parallel_world_size() -> int:
    return process_groups().data.size


def get_data_parallel_src_rank() -> int:
    """Global rank of the first member of this data-parallel group."""
    return process_groups().data.ranks[0]


def get_pipe_parallel_group() -> dist.ProcessGroup | None:
    return process_groups().pipe.process_group


def get_pipe_parallel_rank() -> int:
    return process_groups().pipe.rank


def get_pipe_parallel_world_size() -> int:
    return process_groups().pipe.size
