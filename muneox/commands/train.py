"""Train a model: merge and check configuration files, and start one worker per process.

    muneox train configs/mup/base.yml configs/local_setup.yml [--key value ...]

The command starts the processes on the configured hosts and devices (`num-gpus`, `hostfile`, `launcher`, ...) and
passes signals on to them (docs/clusters.md). deepy.py does the same for your own script.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron.launch import launch_configured
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import launcher_config
from muneox.worker import train as worker


def main(input_args: Sequence[str] | None = None) -> int:
    """Train as configured. Returns the exit code of the workers. Raises ConfigError."""
    return launch_configured(launcher_config(NeoXArgs.consume_deepy_args(input_args, script=worker.__file__)))
