"""Progress of a running search: a live table of the best trials, the remaining time and the cost so far."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from muneox.cost import Cost
from muneox.search.claims import live_workers
from muneox.search.stages import Stage, ranked


@dataclass(frozen=True)
class Usage:
    """Tokens, FLOPs and worker seconds that the runs of some trials took."""

    tokens: int
    flops: float
    seconds: float

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial]) -> Usage:
        runs = [run for trial in trials for run in trial.user_attrs.get("runs", {}).values()]
        return cls(
            sum(run.get("tokens", 0) for run in runs),
            sum(run.get("flops", 0.0) for run in runs),
            sum(run.get("seconds", 0.0) for run in runs),
        )


def eta(trials: Sequence[FrozenTrial], total: int) -> float | None:
    """Seconds to the end, from the mean time of finished trials and the active workers. None before the first."""
    done = [trial for trial in trials if trial.state.is_finished()]
    mean = Usage.of(done).seconds / len(done) if done else 0.0
    workers = live_workers(trials)
    return mean * (total - len(done)) / workers if mean and workers else None


def counts(trials: Sequence[FrozenTrial], total: int) -> str:
    """Number of finished trials, and of trials in each state that occurs, as text."""
    diverged = sum("diverged" in trial.user_attrs for trial in trials)
    by_state = {
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "diverged": diverged,
        "pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "failed": sum(trial.state == TrialState.FAIL for trial in trials),
    }
    finished = sum(trial.state.is_finished() for trial in trials)
    return f"{finished}/{total} trials" + "".join(f", {number} {name}" for name, number in by_state.items() if number)


def status_line(trials: Sequence[FrozenTrial], total: int, target: Cost | None) -> str:
    """One line with trials, ETA, tokens, FLOPs and the share of the target run's FLOPs."""
    spent, rest = Usage.of(trials), eta(trials, total)
    parts = [counts(trials, total)]
    if rest is not None and rest > 0:
        parts.append(f"ETA {datetime.timedelta(seconds=round(rest))}")
    parts += [f"{spent.tokens:,} tokens", f"{spent.flops:.3g} FLOPs"]
    if target is not None:
        parts.append(f"{spent.flops / target.flops:.2%} of the target's {target.flops:.3g}")
    return " | ".join(parts)


def value_text(value: object) -> str:
    """A parameter's value as short text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def loss_text(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def best_table(stage: Stage, trials: Sequence[FrozenTrial], rows: int = 8, title: str = "best trials") -> Table:
    """Table of the best trials with their parameters, and with the loss of each run if a trial has several."""
    names = list(trials[0].params) if trials else []
    several = len(stage.runs) > 1
    table = Table("trial", "loss", *names, *(run.name for run in stage.runs if several), title=title)
    for trial in ranked(trials)[:rows]:
        runs = trial.user_attrs.get("runs", {})
        losses = [loss_text(runs.get(run.name, {}).get("loss")) for run in stage.runs if several]
        values = [value_text(trial.params[name]) for name in names]
        table.add_row(str(trial.number), loss_text(trial.value), *values, *losses)
    return table


def live_view(stage: Stage, target: Cost | None, title: str) -> RenderableType:
    """Table of the best trials with the status line below it."""
    trials = stage.study.get_trials(deepcopy=False)
    return Group(best_table(stage, trials, title=title), Text(status_line(trials, stage.total, target)))


def trial_line(stage: Stage, trial: FrozenTrial) -> str:
    """One line about a finished trial, for output that is not a terminal."""
    params = ", ".join(f"{name} {value_text(value)}" for name, value in trial.params.items())
    outcome = {TrialState.FAIL: "failed", TrialState.PRUNED: "pruned"}.get(
        trial.state, f"loss {loss_text(trial.value)}"
    )
    return f"trial {trial.number}: {outcome} | {params}"
