"""Commands that start a run on several hosts: DeepSpeed's, for pdsh, MPI and Slurm."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from megatron.errors import ConfigError
from megatron.launch.supervisor import Command
from megatron.neox_arguments.job_configs import LauncherConfig

_PROGRAMS = {"pdsh": "pdsh", "openmpi": "mpirun", "mpich": "mpirun", "mvapich": "mpirun", "slurm": "srun"}
# mpirun itself ends its processes, within seconds, at SIGTERM and SIGINT; srun cancels its step at a second SIGINT
_PASSED_AS = {
    "openmpi": signal.SIGUSR1,
    "mpich": signal.SIGUSR1,
    "mvapich": signal.SIGUSR1,
    "slurm": signal.SIGTERM,
}


def cluster_command(config: LauncherConfig, environment: Mapping[str, str] = os.environ) -> Command:
    """The launcher's process. Raises ConfigError where its program is missing or the first host cannot be reached."""
    assert config.hosts is not None
    if shutil.which(_PROGRAMS[config.launcher]) is None:
        raise ConfigError(
            f"launcher: {config.launcher} needs the program {_PROGRAMS[config.launcher]}, which is not installed"
        )
    first = next(iter(config.hosts))
    if config.launcher == "pdsh" and config.ssh_check:
        _require_ssh(first)
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if shutil.which("nvidia-smi") is None else "cuda")
    runner = _runner(config, config.master_addr or _address(first))
    for key, value in environment.items():
        if key.startswith(("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL", "OMP_")):
            runner.add_export(key, shlex.quote(value) if config.launcher == "pdsh" else value)
    name = f"the launcher {config.launcher}"
    if config.launcher == "pdsh":
        return _pdsh(name, config, runner)
    runner.add_export("MASTER_ADDR", runner.args.master_addr)
    runner.add_export("MASTER_PORT", str(runner.args.master_port))
    arguments = runner.get_cmd(dict(environment), config.hosts)
    return Command(name, arguments, passed_as=_PASSED_AS[config.launcher])


def _runner(config: LauncherConfig, master_addr: str) -> Any:
    """DeepSpeed's object for the launcher, with the hosts as they are selected."""
    from deepspeed.launcher import multinode_runner, runner

    assert config.hosts is not None
    args = runner.parse_args([*config.runner_arguments, *config.command])
    args.include, args.exclude, args.num_nodes, args.num_gpus = "", "", -1, -1  # applied already
    args.master_addr = master_addr
    hosts = {host: list(slots) for host, slots in config.hosts.items()}
    counts = {host: len(slots) for host, slots in hosts.items()}
    extra = {
        "slurm": f"--kill-on-bad-exit=1 --nodes={len(hosts)} --nodelist={','.join(hosts)}",
        "openmpi": "--host " + ",".join(f"{host}:{count}" for host, count in counts.items()),
    }
    args.launcher_args = f"{extra.get(config.launcher, '')} {args.launcher_args}".strip()
    world = runner.encode_world_info(hosts)
    match config.launcher:
        case "pdsh":
            return multinode_runner.PDSHRunner(args, world)
        case "openmpi":
            return multinode_runner.OpenMPIRunner(args, world, counts)
        case "slurm":
            return multinode_runner.SlurmRunner(args, world, counts)
        case "mpich" | "mvapich":  # both come with Hydra's mpirun
            return multinode_runner.MPICHRunner(args, world, counts)
        case other:
            raise ValueError(other)


def _pdsh(name: str, config: LauncherConfig, runner: Any) -> Command:
    """Requests to stop go to the workers on the hosts: pdsh and DeepSpeed's launcher there would kill them."""
    runner.args.user_script = runner.user_script = shlex.quote(config.command[0])
    assert config.hosts is not None
    arguments, _, environment = runner.get_cmd({}, {host: list(slots) for host, slots in config.hosts.items()})
    arguments = [f"cd {shlex.quote(os.getcwd())};" if part.startswith("cd /") else part for part in arguments]
    arguments = [shlex.quote(part) if part == sys.executable else part for part in arguments]
    workers = shlex.quote(f"[-]-local_rank=[0-9]+ .*{config.command[-1]}")
    ask = ["pdsh", "-S", "-w", ",".join(config.hosts)]
    return Command(
        name,
        arguments,
        environment,
        stop=[*ask, f"pkill -USR1 -f {workers}"],
        kill=[*ask, f"pkill -KILL -f {workers}"],
    )


def _require_ssh(host: str) -> None:
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "--", host, "true"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
        reason = (done.stderr.strip().splitlines() or ["ssh gave no reason"])[-1] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        raise ConfigError(f"hostfile: host {host} cannot be reached by ssh without a password: {reason}")


def _address(host: str) -> str:
    """The address of the first host. Raises ConfigError where its name is unknown here."""
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        raise ConfigError(f"hostfile: host {host} has no known address; check its name, or set master_addr") from None
