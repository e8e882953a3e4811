"""A run on several hosts through pdsh and ssh, with `megatron.launch.host` on each of them."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron.errors import ConfigError
from megatron.launch.host import MODULE, HostJob, environment_file
from megatron.launch.supervisor import Command
from megatron.launch.workers import Place
from megatron.neox_arguments.job_configs import DEFAULT_PORT, LauncherConfig

_ROOT = Path(__file__).resolve().parents[2]
_FAILURE = re.compile(rb"^pdsh@.*: ssh exited with exit code ([1-9]\d*)")  # pdsh itself waits for all hosts
_TIMEOUT = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]


def pdsh_command(
    config: LauncherConfig, master_addr: str, variables: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> Command:
    """pdsh, which starts a supervisor of the workers on every host. Raises ConfigError where a host is not reached.

    Requests to stop go to the supervisors: pdsh itself would end with its connections. Variables go through ssh to a
    file of each host that only this user can read, and that the supervisor removes before it starts the workers.
    """
    assert config.hosts is not None
    run, hosts = secrets.token_hex(8), list(config.hosts)
    _write_environment(run, hosts, variables, environment)
    counts = [len(slots) for slots in config.hosts.values()]
    first_ranks = itertools.accumulate(counts, initial=0)
    places = tuple(
        Place(first, sum(counts), slots, master_addr, config.master_port or DEFAULT_PORT)
        for first, slots in zip(first_ranks, config.hosts.values())
    )
    job = HostJob(os.getcwd(), config.command, places, bool(variables))
    return Command(
        "the launcher pdsh",
        [*_pdsh(hosts), _python("start", run, "%n", job.encode())],
        stop=[*_pdsh(hosts), _python("stop", run)],
        kill=[*_pdsh(hosts), _python("kill", run)],
        stacks=[*_pdsh(hosts), _python("stacks", run)],
        failure=_FAILURE,
    )


def require_ssh(host: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where ssh asks for a password or does not reach `host`."""
    _ssh(host, "true", "", environment)


def _pdsh(hosts: Sequence[str]) -> list[str]:
    """-f: connections at the same time, all hosts; -S: pdsh returns the largest code of the hosts."""
    return ["pdsh", "-R", "ssh", "-S", "-f", str(len(hosts)), "-w", ",".join(hosts)]


def _python(*arguments: str) -> str:
    """A line for the shells of the hosts. pdsh replaces %n by the number of the host, and other letters after %."""
    python = shlex.quote(sys.executable).replace("%", "%%")
    root = shlex.quote(str(_ROOT)).replace("%", "%%")
    return f"exec env PYTHONPATH={root} {python} -u -m {MODULE} {' '.join(arguments)}"


def _write_environment(
    run: str, hosts: Sequence[str], variables: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    if not variables:
        return
    text = json.dumps(dict(variables))
    lines = [f"umask 077; set -C; cat > {environment_file(run, index)}" for index in range(len(hosts))]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda host, line: _ssh(host, f"sh -c {shlex.quote(line)}", text, environment), hosts, lines))


def _ssh(host: str, command: str, text: str, environment: Mapping[str, str]) -> None:
    """Run `command` on `host` with `text` as its input. Raises ConfigError where that fails."""
    options = shlex.split(environment.get("PDSH_SSH_ARGS_APPEND", ""))
    try:
        done = subprocess.run(
            ["ssh", *_TIMEOUT, *options, "--", host, command],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        reason = (done.stderr.strip().splitlines() or ["ssh gave no reason"])[-1] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = type(error).__name__ if isinstance(error, subprocess.TimeoutExpired) else str(error)
    if reason:
        raise ConfigError(f"hostfile: host {host} cannot be reached by ssh without a password: {reason}")
