"""Commands that start a run on several hosts: through pdsh, and DeepSpeed's for MPI and Slurm."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
from collections.abc import Mapping
from typing import Any

from megatron.errors import ConfigError
from megatron.launch.pdsh import pdsh_command, require_ssh
from megatron.launch.supervisor import Command
from megatron.launch.variables import exported_variables
from megatron.neox_arguments.job_configs import DEFAULT_PORT, LauncherConfig

_PROGRAMS = {"pdsh": "pdsh", "openmpi": "mpirun", "mpich": "mpirun", "mvapich": "mpirun", "slurm": "srun"}
# At SIGTERM both mpirun and srun end their processes, within seconds or at once; both pass SIGUSR1 on.
_PASSED_AS = signal.SIGUSR1


def cluster_command(config: LauncherConfig, environment: Mapping[str, str] = os.environ) -> Command:
    """The launcher's process. Raises ConfigError where its program is missing or the first host cannot be reached.

    No value of a variable is in its arguments, which every user of this host can read.
    """
    assert config.hosts is not None
    if shutil.which(_PROGRAMS[config.launcher]) is None:
        raise ConfigError(
            f"launcher: {config.launcher} needs the program {_PROGRAMS[config.launcher]}, which is not installed"
        )
    variables = exported_variables(config, environment)
    first = next(iter(config.hosts))
    if config.launcher == "pdsh":
        if config.ssh_check:
            require_ssh(first, environment)
        return pdsh_command(config, config.master_addr or _address(first, len(config.hosts)), variables, environment)
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if shutil.which("nvidia-smi") is None else "cuda")
    variables["MASTER_ADDR"] = config.master_addr or _address(first, len(config.hosts))
    variables["MASTER_PORT"] = str(config.master_port or DEFAULT_PORT)
    arguments = _runner(config, variables).get_cmd(dict(environment), config.hosts)
    return Command(f"the launcher {config.launcher}", arguments, variables, passed_as=_PASSED_AS)


def _runner(config: LauncherConfig, variables: Mapping[str, str]) -> Any:
    """DeepSpeed's object for the launcher, with the hosts as they are selected and the names of `variables`."""
    from deepspeed.launcher import multinode_runner, runner

    assert config.hosts is not None
    args = runner.parse_args([*config.runner_arguments, *config.command])
    args.include, args.exclude, args.num_nodes, args.num_gpus = "", "", -1, -1  # applied already
    args.master_addr, args.master_port = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
    hosts = {host: list(slots) for host, slots in config.hosts.items()}
    counts = {host: len(slots) for host, slots in hosts.items()}
    extra = {
        "slurm": f"--kill-on-bad-exit=1 --nodes={len(hosts)} --nodelist={','.join(hosts)}",  # gets all variables
        "openmpi": " ".join(
            ["--host", ",".join(f"{host}:{count}" for host, count in counts.items())]
            + [f"-x {name}" for name in sorted(variables)]
        ),
    }
    hydra = f"-genvlist {','.join(sorted(variables))}"
    args.launcher_args = f"{extra.get(config.launcher, hydra)} {args.launcher_args}".strip()
    world = runner.encode_world_info(hosts)
    match config.launcher:
        case "openmpi":
            return multinode_runner.OpenMPIRunner(args, world, counts)
        case "slurm":
            return multinode_runner.SlurmRunner(args, world, counts)
        case "mpich" | "mvapich":  # both come with Hydra's mpirun
            return multinode_runner.MPICHRunner(args, world, counts)
        case other:
            raise ValueError(other)


def _address(host: str, hosts: int) -> str:
    """The address of the first host. Raises ConfigError where other hosts cannot use the one that is known here."""
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        raise ConfigError(f"hostfile: host {host} has no known address; check its name, or set master_addr") from None
    if hosts > 1 and ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"hostfile: host {host} is {address} here, which the other hosts cannot reach; set master_addr to its "
            "address in their network"
        )
    return address
