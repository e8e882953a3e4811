"""Training: from a configuration to a trained model."""

from __future__ import annotations

from typing import Any


def pretrain(neox_args: Any) -> Any:
    """Train, save base shapes or run the coordinate check, as the configuration says."""
    from megatron.training.main import run

    return run(neox_args)
