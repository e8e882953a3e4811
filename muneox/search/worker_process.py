"""Entry point of a worker process, which the search starts.

    python -m muneox.search.worker_process INDEX STARTED ARGUMENTS...

STARTED is time.monotonic() when the process was started; all processes of a host share this clock. ARGUMENTS are
the arguments of the search.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import optuna

from megatron.entry import run_script
from muneox.search.setup import parse
from muneox.search.worker import run_worker


def main(input_args: Sequence[str] | None = None) -> int:
    """Train trials until the search is over. Returns exit code 0."""
    index, started, *arguments = sys.argv[1:] if input_args is None else input_args
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run_worker(parse(arguments), float(started), int(index), parent=os.getppid())
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
