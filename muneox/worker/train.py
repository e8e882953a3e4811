"""Worker that trains, saves base shapes (`save-base-shapes: true`) or checks coordinates (`coord-check: true`).

`muneox train` and `deepy.py train.py` start it in every process and pass the configuration to it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from megatron.data.fingerprint import require_files
from megatron.entry import run_script
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import dry_run_config, input_files, worker_config
from megatron.signals import write_stacks_when_asked


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Run one worker. Returns the exit code: 1 if a coordinate check fails, otherwise 0."""
    write_stacks_when_asked()
    neox_args = NeoXArgs.consume_neox_args(overwrite_values, input_args)
    # torch and DeepSpeed load only if the configuration is valid
    if neox_args.dry_run:
        from megatron.dry_run.main import print_dry_run

        return print_dry_run(dry_run_config(neox_args))
    config = worker_config(neox_args)
    require_files(*input_files(neox_args))
    from megatron.training.main import run_and_report

    return run_and_report(config, neox_args.notices())


if __name__ == "__main__":
    sys.exit(run_script(main))
