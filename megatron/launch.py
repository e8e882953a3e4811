"""DeepSpeed's runner, on GPU and CPU hosts alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from megatron.neox_arguments.job_configs import DryRunConfig, LauncherConfig


def launch_configured(config: LauncherConfig | DryRunConfig) -> int:
    """Start the configured script in its processes; returns the exit code of the workers.

    A dry run describes the processes instead.
    """
    if isinstance(config, DryRunConfig):
        from megatron.dry_run.main import print_dry_run

        return print_dry_run(config)
    return launch(config.arguments, config.num_processes)


def launch(main_args: Sequence[str], num_processes: int | None = None) -> int:
    """Run DeepSpeed's launcher with its own arguments; the exit code of its workers.

    A host without a GPU is one device to DeepSpeed, unless `num_processes` (num-gpus) says how many workers to start.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed counts a CPU host's NUMA nodes for its devices, and finds none without numactl
        os.environ.setdefault("LOCAL_SIZE", str(num_processes or 1))
    from deepspeed.launcher import runner

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        runner.main(["--log_level", "critical", *main_args])  # the rest repeats the configuration in base64
    except SystemExit as stop:  # the runner exits by itself where a worker failed
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
