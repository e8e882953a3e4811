"""Search hyperparameters on a muP proxy for a target that is too large to search on.

    python tools/mup/search.py configs/mup/base.yml configs/local_setup.yml --trials 24 --workers 2 \\
        --target configs/mup/target.yml configs/local_setup.yml

Writes OUT/best.yml, for `python deepy.py train.py target.yml best.yml`. A killed search continues when the same command
runs again. The same command on another host with access to the same --study joins the search.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from megatron.optional import import_optional


def main(input_args: Sequence[str] | None = None, overwrite_values: Mapping[str, Any] | None = None) -> int:
    """Run or join a search. Returns the exit code: 1 if a trial failed for another reason than divergence."""
    arguments = list(sys.argv[1:] if input_args is None else input_args)
    arguments += [f"--{key}={json.dumps(value)}" for key, value in (overwrite_values or {}).items()]
    optuna = import_optional("optuna", "search", "the search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from muneox.search.proxy import check
    from muneox.search.setup import parse

    setup = parse(arguments)
    target = check(setup.args, setup.space, setup.target())
    from muneox.search.lead import lead  # imports torch, which a mistake in the configuration need not wait for

    return lead(setup, target)
