"""Launcher: merge configuration files and start a script on one or more hosts.

python deepy.py train.py configs/mup/base.yml configs/local_setup.yml [--key value ...]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.entry import run_script
from megatron.errors import ConfigError
from megatron.launch import launch_configured
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.job_configs import DryRunConfig
from megatron.neox_arguments.launcher import split_prompts
from megatron.neox_arguments.resolve import launcher_config


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Validate the configuration once, then pass it to every process. Returns the exit code of the workers."""
    prompts, rest = split_prompts(sys.argv[1:] if input_args is None else input_args)
    neox_args = NeoXArgs.consume_deepy_args(rest)
    config = launcher_config(neox_args.replace(**overwrite_values) if overwrite_values else neox_args)
    if not prompts:
        return launch_configured(config)
    if isinstance(config, DryRunConfig) or Path(config.command[0]).name != "generate.py":
        raise ConfigError("command line: only generate.py takes --prompt")
    of_worker = [f"--prompt={prompt}" for prompt in prompts]
    return launch_configured(dataclasses.replace(config, command=(*config.command, *of_worker)))


if __name__ == "__main__":
    sys.exit(run_script(main))
