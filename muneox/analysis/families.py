"""Families of runs: one recipe at several widths, learning rates and seeds, in muP or standard parametrization."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron.errors import DataError
from megatron.neox_arguments.fields import shared_by
from megatron.neox_arguments.transfer import FAMILY, MUP_FAMILY
from muneox.runs import Run, require_equal, require_same_corpus

RunStatus = Literal["ok", "diverged", "stopped"]

WIDTH = "hidden_size"
LEARNING_RATES = ("optimizer.params.lr", "lr", "learning_rate")
SEED = "seed"
# Keys that must be equal for losses to be comparable, by our names and by those that other trainers log.
RECIPE = (*shared_by(FAMILY), "dataset", "vocab_size")
# Additional keys that must be equal in all muP runs.
MUP_RECIPE = ("mup.base.hidden_size", *shared_by(MUP_FAMILY))
NAMES = {True: "muP", False: "SP", None: "runs"}


@dataclass(frozen=True)
class Member:
    """A run and its place in the family. parametrization: `muP`, `SP`, or `runs` if it is unknown."""

    run: Run
    parametrization: str
    width: int
    lr: float | None
    seed: float


def family(
    runs: Sequence[Run],
    purpose: str,
    *,
    width_key: str = WIDTH,
    lr_key: str | None = None,
    also_alike: Sequence[str] = (),
) -> list[Member]:
    """Return every run with its width, learning rate and seed, sorted in that order.

    Raises DataError for a run without a width, and for runs that differ in the corpus or the recipe, within one
    parametrization in `also_alike`, or, in muP, in the base or the multipliers.
    """
    members = []
    for run in runs:
        width = run.number(width_key)
        if width is None or width <= 0:
            raise DataError(f"run {run.name} ({run.source}) has no width: no number `{width_key}` in its configuration")
        found = (run.number(name) for name in ((lr_key,) if lr_key else LEARNING_RATES))
        lr = next((value for value in found if value is not None), None)
        seed = run.number(SEED)
        members.append(Member(run, _parametrization(run), round(width), lr, 0.0 if seed is None else seed))
    require_same_corpus(runs, purpose)
    require_equal(runs, [name for name in RECIPE if name not in (width_key, lr_key)], purpose)
    for name, alike in by_parametrization(members).items():
        inside = [*also_alike, *(MUP_RECIPE if name == "muP" else ())]
        require_equal([member.run for member in alike], inside, f"{purpose} in {name}")
    return sorted(members, key=lambda m: (m.parametrization != "muP", m.parametrization, m.width, m.lr or 0.0, m.seed))


def _parametrization(run: Run) -> str:
    value = run.value("use_mup")
    return NAMES[value if isinstance(value, bool) else None]


def by_parametrization(members: Sequence[Member]) -> dict[str, list[Member]]:
    """Group members by parametrization, muP first."""
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[member.parametrization].append(member)
    return {name: groups[name] for name in sorted(groups, key=lambda name: (name != "muP", name))}


def default_metric(runs: Sequence[Run]) -> str:
    """Return the first of `valid/loss`, `train/loss` and `loss` that every run has logged. Raises DataError."""
    for name in ("valid/loss", "train/loss", "loss"):
        if all(name in run.series for run in runs):
            return name
    shared = set.intersection(*(set(run.series) for run in runs)) if runs else set()
    known = ", ".join(sorted(name for name in shared if not name.startswith("_"))) or "none"
    raise DataError(f"no loss that all runs have logged; name one with --metric (common metrics: {known})")


def final_step(members: Sequence[Member], metric: str) -> int:
    """Last step of the family: the last one at which any run has logged the metric. Raises DataError."""
    steps = [int(series.steps[-1]) for m in members if (series := m.run.series.get(metric)) is not None and len(series)]
    if not steps:
        raise DataError(f"no run has logged `{metric}`; name another with --metric")
    return max(steps)


def outcome(run: Run, metric: str, step: int) -> tuple[float | None, RunStatus, str]:
    """Return the loss at a step, the run's status and a description of the problem, if any.

    diverged: the loss or the training loss is not finite, or the training loss ends above its start. stopped: the run
    did not reach the step for another or an unknown reason.
    """
    series = run.series.get(metric)
    training = run.series.get("train/loss", series)
    if training is not None and len(training):
        kept = training.values[training.steps <= step]
        if len(kept) and not np.all(np.isfinite(kept)):
            return None, "diverged", f"a loss of {kept[~np.isfinite(kept)][0]}"
        if len(kept) > 1 and kept[-1] > kept[0]:
            return (
                _value(run, metric, step),
                "diverged",
                f"training loss {kept[-1]:.3f}, {kept[0]:.3f} at the start",
            )
    value = _value(run, metric, step)
    if value is None:
        last = int(training.steps[-1]) if training is not None and len(training) else 0
        return None, "stopped", f"no `{metric}` at step {step}; the last step of the {run.state} run is {last}"
    if not np.isfinite(value):
        return None, "diverged", f"a loss of {value}"
    return value, "ok", ""


def _value(run: Run, metric: str, step: int) -> float | None:
    series = run.series.get(metric)
    if series is None:
        return None
    i = int(np.searchsorted(series.steps, step))
    return float(series.values[i]) if i < len(series) and series.steps[i] == step else None
