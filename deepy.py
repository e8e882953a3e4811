"""Launcher: merge configuration files and start a script on one or more hosts.

python deepy.py train.py configs/mup/base.yml configs/local_setup.yml [--key value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from megatron.entry import run_script
from megatron.launch import launch_configured
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import launcher_config


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Validate the configuration once, then pass it to every process. Returns the exit code of the workers."""
    neox_args = NeoXArgs.consume_deepy_args(input_args)
    return launch_configured(launcher_config(neox_args.replace(**overwrite_values) if overwrite_values else neox_args))


if __name__ == "__main__":
    sys.exit(run_script(main))
