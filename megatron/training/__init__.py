"""Training: from a configuration to a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.forwarding import forward_names
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import worker_config

if TYPE_CHECKING:
    from megatron.training.main import Result


__getattr__ = forward_names(__name__, {"setup_model_and_optimizer": "megatron.gpt_neox"})


def pretrain(neox_args: NeoXArgs) -> Result:
    """Train, save base shapes or run a check, depending on the configuration."""
    from megatron.training.main import run

    return run(worker_config(neox_args))
