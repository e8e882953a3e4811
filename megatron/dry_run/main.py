"""The entry of `--dry-run`, for deepy.py and train.py."""

from __future__ import annotations

from megatron.neox_arguments import NeoXArgs


def print_dry_run(args: NeoXArgs) -> int:
    """Print the report of a dry run; the exit code."""
    import os

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # no GPU is looked for
    from megatron.dry_run.report import report
    from megatron.dry_run.run import dry_run

    print(report(dry_run(args)), end="")
    return 0
