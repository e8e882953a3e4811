"""Run DeepSpeed's launcher on GPU and CPU hosts."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from megatron.neox_arguments.job_configs import DryRunConfig, LauncherConfig


def launch_configured(config: LauncherConfig | DryRunConfig) -> int:
    """Start the workers of the configured script, or print the dry run. Returns the exit code."""
    if isinstance(config, DryRunConfig):
        from megatron.dry_run.main import print_dry_run

        return print_dry_run(config)
    return launch(config.arguments, config.num_processes)


def launch(main_args: Sequence[str], num_processes: int | None = None) -> int:
    """Run DeepSpeed's launcher with `main_args` and return the exit code of its workers.

    DeepSpeed counts a host without a GPU as one device. `num_processes` (num-gpus) sets another number of workers.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed counts the NUMA nodes of a CPU host as devices and finds none without numactl.
        os.environ.setdefault("LOCAL_SIZE", str(num_processes or 1))
    from deepspeed.launcher import runner

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        runner.main(["--log_level", "critical", *main_args])  # other levels print the configuration in base64
    except SystemExit as stop:  # the runner exits if a worker failed
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
