"""The worker processes of one host."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron.launch.supervisor import Command


@dataclass(frozen=True)
class Place:
    """This host among those of a run. first_rank: the rank of its first process. devices: one for each process."""

    first_rank: int
    world_size: int
    devices: tuple[int, ...]
    master_addr: str
    master_port: int


def worker_commands(place: Place, command: Sequence[str], visible: str | None) -> list[Command]:
    """One process for each device. command: the script and its arguments.

    visible: CUDA_VISIBLE_DEVICES of this host, of which `devices` are positions; None to leave the variable alone.
    """
    common = {
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_SIZE": str(len(place.devices)),  # the number of devices of a CPU host, to DeepSpeed
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": str(place.master_port),
        **({} if visible is None else _visible(place.devices, visible)),
    }
    script, *arguments = command
    return [
        Command(
            f"the process of rank {place.first_rank + index}",
            [sys.executable, "-u", script, f"--local_rank={index}", *arguments],
            {**common, "RANK": str(place.first_rank + index), "LOCAL_RANK": str(index)},
        )
        for index in range(len(place.devices))
    ]


def _visible(devices: Sequence[int], visible: str) -> Mapping[str, str]:
    names = visible.split(",") if visible else [str(device) for device in range(max(devices) + 1)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[device] for device in devices if device < len(names))}
