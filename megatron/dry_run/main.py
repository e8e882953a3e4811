"""Entry point of `--dry-run` for deepy.py and train.py."""

from __future__ import annotations

from megatron.neox_arguments.job_configs import DryRunConfig


def print_dry_run(config: DryRunConfig) -> int:
    """Print the report of a dry run. Returns exit code 0."""
    import os

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # do not look for a GPU
    from megatron.dry_run.report import report
    from megatron.dry_run.run import dry_run

    print(report(dry_run(config)), end="")
    return 0
