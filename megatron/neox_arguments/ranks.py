"""Which process among how many this one is, by the environment that its launcher has set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.errors import ConfigError

_SLURM = {
    "RANK": ("SLURM_PROCID",),
    "LOCAL_RANK": ("SLURM_LOCALID",),
    "WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
}
_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE"),
}
_MPI_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_LAST_STEP = 0xFFFFFF00  # Slurm numbers what is no step of tasks (the batch script, an interactive shell) above


@dataclass(frozen=True)
class Launched:
    """What a launcher says. address: where the first process listens, as far as the environment tells."""

    launcher: str
    rank: int
    local_rank: int
    world_size: int
    address: str | None


def launched(environment: Mapping[str, str] = os.environ, mpi: bool = False, slurm: bool = False) -> Launched | None:
    """What torchrun, deepy.py, mpirun or srun has set, None where none of them has started this process.

    mpi, slurm: the key deepspeed_mpi or deepspeed_slurm, which makes its absence an error. Raises ConfigError where the
    environment is incomplete.
    """
    if "RANK" in environment or environment.get("WORLD_SIZE", "1") != "1":
        return _from_torch(environment)
    if slurm or (not mpi and not _has(environment, _MPI["WORLD_SIZE"]) and _is_slurm_task(environment)):
        rank, local_rank, size = (_required(environment, names, "deepspeed_slurm") for names in _SLURM.values())
        return Launched("srun", rank, local_rank, size, first_slurm_host(environment))
    if mpi or _has(environment, _MPI["WORLD_SIZE"]):
        rank, local_rank, size = (_required(environment, names, "deepspeed_mpi") for names in _MPI.values())
        one_host = _has(environment, _MPI_LOCAL_SIZE) and _required(environment, _MPI_LOCAL_SIZE, "") == size
        return Launched("mpirun", rank, local_rank, size, "127.0.0.1" if one_host else None)
    return None


def launched_world_size(config: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> int | None:
    """Number of processes that a launcher says it started, or None. config: keys of the configuration."""
    if "WORLD_SIZE" in environment:
        return _int(environment, "WORLD_SIZE")
    mpi, slurm = bool(config.get("deepspeed_mpi")), bool(config.get("deepspeed_slurm"))
    try:
        found = launched(environment, mpi, slurm)
    except ConfigError:
        if mpi or slurm:  # tools read the same configuration without a launcher; `rank_environment` is strict
            return None
        raise
    return None if found is None else found.world_size


def rank_environment(
    args: Any, environment: Mapping[str, str] = os.environ, *, any_number: bool = False
) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT that the environment lacks, for `args` (a NeoXArgs).

    any_number: the job runs on any number of processes, not on the number of the configuration.
    For a worker to put into its environment before it joins the process group. Raises ConfigError where the launcher
    has left out what cannot be derived.
    """
    found = launched(environment, args.deepspeed_mpi, args.deepspeed_slurm)
    alone = args.world_size == 1 and not any_number
    if found is None or found.world_size == 1 or alone:  # a process alone needs no others
        return {}
    address = environment.get("MASTER_ADDR") or args.master_addr or found.address
    if address is None:
        raise ConfigError(
            f"{found.launcher} has started {found.world_size} processes, but the environment does not name the first "
            f"one's host{_SLURM_NODES if found.launcher == 'srun' else ''}; set master_addr (or MASTER_ADDR)"
        )
    complete = {
        "RANK": str(found.rank),
        "LOCAL_RANK": str(found.local_rank),
        "WORLD_SIZE": str(found.world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(args.master_port),
    }
    return {name: value for name, value in complete.items() if name not in environment}


_SLURM_NODES = " (SLURM_STEP_NODELIST, SLURM_JOB_NODELIST or SLURM_LAUNCH_NODE_IPADDR)"


def require_one_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where deepy.py or `muneox train` itself is one of several processes."""
    found = launched(environment)
    if found is not None and found.world_size > 1:
        raise ConfigError(
            f"{found.launcher} has started {found.world_size} launchers, and each would train a model of its own; "
            f"let {found.launcher} start train.py, or start one launcher"
        )


def first_slurm_host(environment: Mapping[str, str]) -> str | None:
    """The host of a Slurm step's or job's first task, or None where the environment does not name it."""
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_JOB_NUM_NODES")) == "1":
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    return next(iter(slurm_hosts(nodes)), None) or environment.get("SLURM_LAUNCH_NODE_IPADDR")


def slurm_hosts(nodes: str) -> list[str]:
    """The hosts of a Slurm node list such as gpu[03-07,9],login1."""
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes):
        names = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            names = [name + tail for name in names for tail in ([text] if text else _expand(ranges))]
        hosts += names
    return hosts


def _expand(ranges: str) -> list[str]:
    """03-05,9 -> 03, 04, 05, 9."""
    numbers: list[str] = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        if not low.isdigit() or not (high or low).isdigit():
            return []
        numbers += [str(number).zfill(len(low)) for number in range(int(low), int(high or low) + 1)]
    return numbers


def _from_torch(environment: Mapping[str, str]) -> Launched:
    size = _int(environment, "WORLD_SIZE") if "WORLD_SIZE" in environment else 0
    needed = ("RANK", "WORLD_SIZE") if size == 1 else ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    missing = [name for name in needed if name not in environment]
    if missing:
        there = ", ".join(f"{name}={environment[name]}" for name in needed if name in environment)
        raise ConfigError(
            f"environment: {there} without {' and '.join(missing)}: a launcher sets all of them; start through "
            "deepy.py or torchrun, or unset them to train in one process"
        )
    rank, local_rank = _int(environment, "RANK"), _int(environment, "LOCAL_RANK") if size > 1 else 0
    if not 0 <= rank < size or not 0 <= local_rank < size:
        raise ConfigError(f"environment: RANK={rank}, LOCAL_RANK={local_rank}: expected less than WORLD_SIZE={size}")
    return Launched("torchrun", rank, local_rank, size, None)


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Whether srun has started this process: a batch script has SLURM_PROCID too, but is no step."""
    step = environment.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in environment and step.isdigit() and int(step) < _LAST_STEP


def _has(environment: Mapping[str, str], names: tuple[str, ...]) -> bool:
    return any(name in environment for name in names)


def _required(environment: Mapping[str, str], names: tuple[str, ...], key: str) -> int:
    for name in names:
        if name in environment:
            return _int(environment, name)
    because = f"{key}: " if key else ""
    raise ConfigError(
        f"{because}none of {', '.join(names)} is in the environment; start the processes with srun or mpirun"
    )


def _int(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].strip().isdigit():
        raise ConfigError(f"environment: {name}={environment[name]!r} is not a number")
    return int(environment[name])
