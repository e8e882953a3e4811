"""Hosts and their slots: the hostfile, and which of it a run uses."""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron.errors import ConfigError
from megatron.files import read_bytes
from megatron.neox_arguments.limits import Pattern, listed

Hosts = Mapping[str, tuple[int, ...]]
"""The slots (devices) of each host, in the order of the hostfile."""

# Names and addresses end up in commands of shells on other hosts: nothing that a shell could interpret is accepted.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_SLOT = r"[0-9]{1,4}"
_SELECTION = rf"{_NAME}(?::{_SLOT}(?:,{_SLOT})*)?"
_MAX_BYTES = 1 << 24

ADDRESS = Pattern(rf"{_NAME}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9]+)?", "a host name or an IP address")
SELECTION = Pattern(
    rf"|{_SELECTION}(?:@{_SELECTION})*", "hosts, each with its slots where not all are meant, such as a@b:0,2"
)


def read_hostfile(path: str) -> Hosts:
    """The hosts of a file with one line `host slots=N` for each. Raises ConfigError that names the file and line."""
    try:
        lines = read_bytes(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"hostfile: {path}: file not found") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"hostfile: {path}: {reason and reason[0].lower() + reason[1:]}") from None
    hosts: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(rf"({_NAME})\s+slots=({_SLOT})", text)
        if match is None or int(match[2]) < 1:
            raise ConfigError(
                f"hostfile: {path}:{number}: expected `host slots=N` with N of at least 1, got {text[:80]!r}"
            )
        if match[1] in hosts:
            raise ConfigError(f"hostfile: {path}:{number}: host {match[1]} is listed twice; give it one line")
        hosts[match[1]] = tuple(range(int(match[2])))
    if not hosts:
        raise ConfigError(f"hostfile: {path}: lists no host; expected one line `host slots=N` for each")
    return hosts


def select_hosts(hosts: Hosts, include: str | None, exclude: str | None, source: str = "the hostfile") -> Hosts:
    """What `include` keeps or `exclude` drops. Raises ConfigError for a host or a slot that is not in `hosts`."""
    key, text = ("include", include) if include else ("exclude", exclude)
    if not text:
        return hosts
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split("@"):
        host, _, slots = part.partition(":")
        if host not in hosts:
            raise ConfigError(f"{key}: host {host} is not in {source}, which has {listed(list(hosts))}")
        if host in named:
            raise ConfigError(f"{key}: host {host} is named twice")
        named[host] = tuple(sorted(map(int, slots.split(",")))) if slots else hosts[host]
        for slot in named[host]:
            if slot not in hosts[host] or named[host].count(slot) > 1:
                available = f"slots 0 to {len(hosts[host]) - 1}, each once"
                raise ConfigError(f"{key}: {host}:{slot}: host {host} of {source} has {available}")
    if key == "include":
        return {host: named[host] for host in hosts if host in named}
    left = {host: tuple(slot for slot in slots if slot not in named.get(host, ())) for host, slots in hosts.items()}
    left = {host: slots for host, slots in left.items() if slots}
    if not left:
        raise ConfigError(f"exclude: {text}: leaves no slot of {source}")
    return left


def limit_hosts(hosts: Hosts, num_nodes: int, num_gpus: int | None) -> Hosts:
    """The first `num_nodes` hosts (-1: all) with `num_gpus` slots each (None: all). ConfigError: not there."""
    if num_nodes > len(hosts):
        raise ConfigError(f"num_nodes: {num_nodes}, but the hostfile lists {len(hosts)}")
    first = list(hosts.items())[: num_nodes if num_nodes > 0 else None]
    for host, slots in first:
        if num_gpus is not None and num_gpus > len(slots):
            raise ConfigError(f"num_gpus: {num_gpus}, but host {host} has {len(slots)} slots in the hostfile")
    return {host: slots[:num_gpus] for host, slots in first}
