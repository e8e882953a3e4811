"""Build the resolved configuration from the configuration's keys. Only this package and the entry scripts read keys.

There is one function per part of a run and one per job. Each raises ConfigError for a required key without a value.
Imports no torch.
"""

from megatron.neox_arguments.resolve.files import data_prefixes, input_files
from megatron.neox_arguments.resolve.jobs import (
    audit_config,
    conversion_config,
    coordinate_check_config,
    cost_config,
    dry_run_config,
    generation_config,
    launcher_config,
    run_config,
    save_base_shapes_config,
    task_evaluation_config,
    worker_config,
)
from megatron.neox_arguments.resolve.model import model_config, tokenizer_config
from megatron.neox_arguments.resolve.training import batch_config

__all__ = [
    "audit_config",
    "batch_config",
    "conversion_config",
    "coordinate_check_config",
    "cost_config",
    "data_prefixes",
    "dry_run_config",
    "generation_config",
    "input_files",
    "launcher_config",
    "model_config",
    "run_config",
    "save_base_shapes_config",
    "task_evaluation_config",
    "tokenizer_config",
    "worker_config",
]
