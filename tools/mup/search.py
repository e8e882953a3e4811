"""Search hyperparameters on a muP proxy, for a target that is too large to search on.

    python tools/mup/search.py configs/mup/base.yml configs/local_setup.yml --trials 24 --workers 2 \
        --target configs/mup/target.yml configs/local_setup.yml

Writes OUT/best.yml, for `python deepy.py train.py target.yml best.yml`. Killed and started again, it goes on; the
same command on another host that sees the same --study joins in.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()  # a worker's wall time counts from here, imports included

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron.entry import run_script  # noqa: E402
from megatron.errors import ConfigError  # noqa: E402


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Run or join a search; returns the exit code: 1 where a trial failed for another reason than divergence."""
    arguments = list(sys.argv[1:] if input_args is None else input_args)
    arguments += [f"--{key}={json.dumps(value)}" for key, value in (overwrite_values or {}).items()]
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("the search needs Optuna: pip install -e .[search]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from tools.mup.searching.setup import parse

    setup = parse(arguments)
    if setup.worker_index is not None:
        from tools.mup.searching.worker import run_worker

        run_worker(setup, BEGAN, parent=os.getppid())
        return 0
    from tools.mup.searching.lead import lead

    return lead(setup, Path(__file__).resolve())


if __name__ == "__main__":
    sys.exit(run_script(main))
