"""Training: from a configuration to a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import worker_config

if TYPE_CHECKING:
    from megatron.training.coord_check_run import CheckResult
    from megatron.training.trainer import TrainingResult


def pretrain(neox_args: NeoXArgs) -> TrainingResult | CheckResult | Path:
    """Train, save base shapes or run the coordinate check, depending on the configuration."""
    from megatron.training.main import run

    return run(worker_config(neox_args))
