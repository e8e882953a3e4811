"""Iterations at which to save: GPT-NeoX's `checkpoint-scale`, `checkpoint-factor` and `extra-save-iters`."""

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
    """Iterations in (0, train_iters) to save at, plus `extra_save_iters`.

    "linear" saves at every multiple of the factor, "log" at every power. The first save is at the factor itself. As
    in GPT-NeoX, the trainer saves the last step of training separately. Steps of a fractional factor are rounded to
    the nearest integer (GPT-NeoX never reaches such a step). Raises ConfigError for a factor that makes no progress.
    """
    extra = {int(step) for step in extra_save_iters or ()}
    if checkpoint_factor is None:
        return extra
    if checkpoint_scale not in ("linear", "log"):
        raise ConfigError(f"checkpoint-scale: expected 'linear' or 'log', got {checkpoint_scale!r}")
    if checkpoint_factor < 1 or (checkpoint_scale == "log" and checkpoint_factor == 1):
        least = "a number above 1 with checkpoint-scale 'log'" if checkpoint_scale == "log" else "1 or more"
        raise ConfigError(f"checkpoint-factor: expected {least}, got {checkpoint_factor}")
    due: set[int] = set()
    step = float(checkpoint_factor)
    while round(step) < train_iters:
        due.add(round(step))
        step = step * checkpoint_factor if checkpoint_scale == "log" else step + checkpoint_factor
    if checkpoint_factor != 1:
        due.discard(1)  # a fractional factor, for example 1.2, rounds to 1
    return due | extra
