"""A worker that does not train: it claims trials, waits briefly and records a loss computed from the parameters."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from muneox.search.claims import Claims, Worker
from muneox.search.samplers import distributions, planner
from muneox.search.space import Parameter, Space
from muneox.search.storage import open_storage, open_study

SPACE = Space((Parameter("lr", 1e-4, 1e-1, True), Parameter("mup_output_temp", 0.25, 4.0, True)))
assert isinstance(distributions(SPACE)["lr"], FloatDistribution)


def loss(params: dict[str, float]) -> float:
    return sum(abs(value - 0.01) for value in params.values())


def claims(where: str, total: int) -> Claims:
    storage, lock = open_storage(where)
    study = open_study(storage, lock, "search", {"space": SPACE.describe()}, where)
    return Claims(study, lock, total, planner(SPACE), distributions(SPACE), Worker.here(), stale_after=3.0)


def work(where: str, total: int, seconds: float, record: Path | None = None) -> None:
    """Work until all trials are finished. `record` receives one line per trial that this worker finished."""
    mine = claims(where, total)
    while not mine.is_over():
        claim = mine.next()
        if claim is None:
            time.sleep(0.05)
            continue
        time.sleep(seconds)
        mine.record_run(claim, "w16-s1", {"loss": loss(claim.params)})
        if mine.finish(claim, TrialState.COMPLETE, loss(claim.params)) and record is not None:
            with record.open("a") as file:
                file.write(json.dumps({"number": claim.number, "worker": mine.worker.name}) + "\n")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
