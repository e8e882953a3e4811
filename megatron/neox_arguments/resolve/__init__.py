"""From the configuration's keys to the resolved configuration: the one place below the entry scripts that reads keys.

One function for each part, and one for each job of a process. Raises ConfigError for a key that the job needs and the
configuration lacks. Imports no torch.
"""

from megatron.neox_arguments.resolve.jobs import (
    audit_config,
    coordinate_check_config,
    cost_config,
    dry_run_config,
    generation_config,
    launcher_config,
    run_config,
    save_base_shapes_config,
    worker_config,
)
from megatron.neox_arguments.resolve.model import model_config, tokenizer_config
from megatron.neox_arguments.resolve.training import batch_config

__all__ = [
    "audit_config",
    "batch_config",
    "coordinate_check_config",
    "cost_config",
    "dry_run_config",
    "generation_config",
    "launcher_config",
    "model_config",
    "run_config",
    "save_base_shapes_config",
    "tokenizer_config",
    "worker_config",
]
