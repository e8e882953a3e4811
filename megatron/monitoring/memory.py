"""Memory of the device that a run trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_memory(device: torch.device) -> dict[str, float]:
    """`peak_memory_gib`: peak memory of torch's allocator on `device` since the process started, in GiB.

    Empty on a CPU. Memory of the driver and the communication library is not counted.
    """
    if device.type != "cuda":
        return {}
    import torch

    return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
