"""When a checkpoint is due: GPT-NeoX's `checkpoint-scale`, `checkpoint-factor` and `extra-save-iters`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from megatron.errors import ConfigError


def save_iterations(
    train_iters: int,
    checkpoint_scale: Literal["linear", "log"] = "linear",
    checkpoint_factor: float | None = None,
    extra_save_iters: Iterable[int] | None = None,
) -> set[int]:
    """Iterations in (0, train_iters) to save at, and `extra_save_iters`.

    "linear" saves at every multiple of the factor, "log" at every power of it; the first is the factor
    itself, and the last step of training is the trainer's to save, as in GPT-NeoX. A fractional factor is rounded to
    the nearest step (GPT-NeoX never reaches such a step). Raises ConfigError for a factor that makes no
    progress.
    """
    extra = {int(step) for step in extra_save_iters or ()}
    if checkpoint_factor is None:
        return extra
    if checkpoint_scale not in ("linear", "log"):
        raise ConfigError(f"checkpoint-scale must be 'linear' or 'log', not {checkpoint_scale!r}")
    if checkpoint_factor < 1 or (checkpoint_scale == "log" and checkpoint_factor == 1):
        least = "above 1 where checkpoint-scale is 'log'" if checkpoint_scale == "log" else "1 or more"
        raise ConfigError(f"checkpoint-factor must be {least}, not {checkpoint_factor}")
    due: set[int] = set()
    step = float(checkpoint_factor)
    while round(step) < train_iters:
        due.add(round(step))
        step = step * checkpoint_factor if checkpoint_scale == "log" else step + checkpoint_factor
    if checkpoint_factor != 1:
        due.discard(1)  # a fractional factor such as 1.2 rounds to it
    return due | extra
