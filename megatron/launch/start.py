"""Which processes a configuration starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from megatron.data.fingerprint import require_files
from megatron.errors import ConfigError
from megatron.launch.supervisor import Command, supervise
from megatron.launch.workers import Place, worker_commands
from megatron.neox_arguments.hosts import select_hosts
from megatron.neox_arguments.job_configs import DryRunConfig, LauncherConfig


def launch_configured(config: LauncherConfig | DryRunConfig) -> int:
    """Start the configured script in its processes; returns their exit code.

    A dry run describes the processes instead. Raises ConfigError where a host, a device or the port is not there.
    """
    if isinstance(config, DryRunConfig):
        from megatron.dry_run.main import print_dry_run

        return print_dry_run(config)
    if config.fixed_hashes:
        os.environ.setdefault("PYTHONHASHSEED", "0")  # only has an effect where a process starts
    if config.hosts is None or _is_here(config):
        require_files(*config.inputs)
        return supervise(local_commands(config))
    from megatron.launch.cluster import cluster_command

    return supervise([cluster_command(config)])


def local_commands(config: LauncherConfig, environment: Mapping[str, str] = os.environ) -> list[Command]:
    """One process for each device of this host, or `num_processes`."""
    slots = _local_slots(config)
    if config.master_port is not None:
        _require_free(config.master_port)
    place = Place(0, len(slots), slots, "127.0.0.1", config.master_port or _free_port())
    selected = config.include or config.exclude or config.hosts is not None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "") if selected else None
    return worker_commands(place, config.command, visible)


def _local_slots(config: LauncherConfig) -> tuple[int, ...]:
    if config.hosts is not None:
        [slots] = config.hosts.values()
        return slots
    if config.num_processes is not None:
        return tuple(range(config.num_processes))
    import torch  # seconds: only where the configuration leaves the number of processes to the host

    here = {"localhost": tuple(range(torch.cuda.device_count() or 1))}
    [slots] = select_hosts(here, config.include, config.exclude, source="this host").values()
    return slots


def _is_here(config: LauncherConfig) -> bool:
    """Whether the one host that is left is this one."""
    assert config.hosts is not None
    if config.force_multi or config.launcher == "slurm" or len(config.hosts) > 1:
        return False
    [host] = config.hosts
    return host in ("localhost", socket.gethostname(), socket.gethostname().split(".")[0]) or _is_own_address(host)


def _is_own_address(host: str) -> bool:
    """Whether a socket can be bound to it, which only an address of this host allows."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _require_free(port: int) -> None:
    """Raise ConfigError where another process listens on the port."""
    family, everywhere = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((everywhere, port))
        except OSError as error:
            raise ConfigError(
                f"master_port: {port} cannot be used on this host ({error.strerror}); name another one, or leave "
                "the key out for a free one"
            ) from None
