"""Train a model: merge configuration files, check them, and start the worker in every process.

muneox train configs/mup/base.yml configs/local_setup.yml [--key value ...]

DeepSpeed's runner starts the processes, on as many hosts and devices as the configuration says (`num-gpus`,
`hostfile`, `launcher`, ...). deepy.py does the same for a script of your own.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron.launch import launch_configured
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import launcher_config
from muneox.worker import train as worker


def main(input_args: Sequence[str] | None = None) -> int:
    """Train as configured; returns the exit code of the workers. Raises ConfigError."""
    return launch_configured(launcher_config(NeoXArgs.consume_deepy_args(input_args, script=worker.__file__)))
