"""The studies of one search: the search itself, and the optional confirmation of its best trials with more seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from muneox.search.claims import Claims, Worker
from muneox.search.proxy import TrialRun, corpus_of, describe, runs_of
from muneox.search.samplers import Params, distributions, planner
from muneox.search.setup import Setup
from muneox.search.storage import Lock, open_storage, open_study


@dataclass(frozen=True)
class Stage:
    """One study and its plan: `total` trials, each of which trains all `runs`."""

    study: optuna.Study
    lock: Lock
    total: int
    runs: tuple[TrialRun, ...]
    candidates: tuple[Params, ...] | None = None  # parameters of the trials to confirm

    def claims(self, setup: Setup, worker: Worker) -> Claims:
        plan = planner(setup.space)
        if self.candidates is not None:
            chosen = self.candidates

            def plan(k: int, _: Sequence[FrozenTrial]) -> Params:
                return chosen[k]

        return Claims(self.study, self.lock, self.total, plan, distributions(setup.space), worker, setup.stale_after)


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Finished trials with a finite loss, best first. Of equal trials, the earlier comes first."""
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None and math.isfinite(t.value)]
    return sorted(done, key=lambda trial: (trial.value, trial.number))


def search_stage(setup: Setup) -> Stage:
    """Join or create the study of the search. Raises StudyError."""
    storage, lock = open_storage(setup.study)
    description = describe(setup.args, setup.space) | {"corpus": corpus_of(setup.args)}
    study = open_study(storage, lock, setup.name, description, setup.study)
    if setup.space.pruner != "none":
        study.pruner = _pruner(setup)
    return Stage(study, lock, setup.trials, tuple(runs_of(setup.args, setup.space)))


def confirm_stage(setup: Setup, search: Stage) -> Stage | None:
    """Confirmation of a finished search. None if it was not requested or there is no trial to confirm."""
    best = ranked(search.study.get_trials(deepcopy=False))[: setup.confirm_top]
    if not setup.confirm_seeds or not best:
        return None
    used = setup.space.seeds or (setup.args.seed,)
    seeds = [max(used) + 1 + k for k in range(setup.confirm_seeds)]
    widths = sorted({run.hidden_size for run in search.runs})
    runs = tuple(TrialRun(width, seed) for width in widths for seed in seeds)
    description: dict[str, Any] = {"of": setup.name, "numbers": [t.number for t in best], "seeds": seeds}
    name = f"{setup.name}-confirm-{'-'.join(str(t.number) for t in best)}-{setup.confirm_seeds}"
    study = open_study(search.study._storage, search.lock, name, description, setup.study)
    return Stage(study, search.lock, len(best), runs, tuple(dict(t.params) for t in best))


def _pruner(setup: Setup) -> optuna.pruners.BasePruner:
    """Build the pruner. Its steps count the training steps of all runs of a trial."""
    steps = setup.steps * len(runs_of(setup.args, setup.space))
    if setup.space.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=steps // 5)
    return optuna.pruners.HyperbandPruner(min_resource=max(steps // 9, 1), max_resource=steps)
