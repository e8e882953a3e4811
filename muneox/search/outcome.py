"""Outcome of a finished search: the best trial, its lead over the others, and whether the space was wide enough."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr

from muneox.output import write_atomically
from muneox.search.proxy import runs_of, tied_changes
from muneox.search.setup import Setup
from muneox.search.space import Parameter, Space
from muneox.search.stages import Stage, ranked

EDGE = 0.1  # share of a range, at each end, that counts as its edge
TREND = 0.05  # significance level below which the loss depends on a parameter


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a run's loss over seeds, and the degrees of freedom of the estimate."""

    std: float
    degrees: int


def loss_of(trial: FrozenTrial) -> float:
    """The loss of a trial that `ranked` lists."""
    assert trial.value is not None
    return trial.value


def seed_noise(stages: Sequence[Stage]) -> Noise | None:
    """Seed noise, pooled over all trials and widths with two or more seeds. None if there are none.

    Runs of the search and of its confirmation are pooled: they have the same parameters and different seeds.
    """
    squares, degrees = 0.0, 0
    for losses in _losses_by_setting(stages).values():
        finite = [loss for loss in losses if math.isfinite(loss)]
        if len(finite) > 1:
            mean = sum(finite) / len(finite)
            squares += sum((loss - mean) ** 2 for loss in finite)
            degrees += len(finite) - 1
    return Noise(math.sqrt(squares / degrees), degrees) if degrees else None


def _losses_by_setting(stages: Sequence[Stage]) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for stage in stages:
        for trial in ranked(stage.study.get_trials(deepcopy=False)):
            for run in stage.runs:
                loss = trial.user_attrs.get("runs", {}).get(run.name, {}).get("loss")
                if loss is not None:
                    found.setdefault((json.dumps(trial.params, sort_keys=True), run.hidden_size), []).append(loss)
    return found


def neighbours(
    space: Space, best: FrozenTrial, trials: Sequence[FrozenTrial], number: int = 5
) -> list[tuple[float, FrozenTrial]]:
    """Return the trials nearest to the best with their distances. Distance 1 is the full range of every parameter."""

    def distance(trial: FrozenTrial) -> float:
        squares = [_difference(parameter, trial, best) ** 2 for parameter in space.parameters]
        return math.sqrt(sum(squares) / len(squares))

    others = [trial for trial in ranked(trials) if trial.number != best.number]
    return sorted(((distance(trial), trial) for trial in others), key=lambda pair: pair[0])[:number]


def _difference(parameter: Parameter, a: FrozenTrial, b: FrozenTrial) -> float:
    x, y = a.params[parameter.key], b.params[parameter.key]
    if not parameter.ordered:
        return float(x != y)
    return parameter.position(x) - parameter.position(y)


def edge_warnings(space: Space, best: FrozenTrial, trials: Sequence[FrozenTrial]) -> list[str]:
    """One message for each parameter whose best value is at an edge of the space, with a wider range."""
    return [text for parameter in space.parameters if (text := _edge(parameter, best, trials)) is not None]


def _edge(parameter: Parameter, best: FrozenTrial, trials: Sequence[FrozenTrial]) -> str | None:
    value = best.params[parameter.key]
    if not parameter.ordered or (parameter.choices and len(parameter.choices) < 2):
        return None
    at = parameter.position(value)
    margin = 0.0 if parameter.choices else EDGE
    if margin < at < 1.0 - margin:
        return None
    upper = at >= 0.5
    end = "upper" if upper else "lower"
    where = f"{parameter.key}: the best value {value:.4g} is at the {end} edge of the space"
    wider = _wider(parameter, upper)
    trend = _trend(parameter, trials)
    if trend is None or abs(trend) < 1e-12 or (trend < 0) != upper:
        return f"{where}; over all trials the loss does not fall towards it, so a wider space is not urgent ({wider})"
    return f"{where}, and the loss falls towards it (rank correlation {trend:+.2f}): widen it, {wider}"


def _wider(parameter: Parameter, upper: bool) -> str:
    low, high = (parameter.choices[0], parameter.choices[-1]) if parameter.choices else (parameter.low, parameter.high)
    logarithmic = parameter.log or (bool(parameter.choices) and low > 0 and high / low >= 4)
    if logarithmic:
        reach = math.sqrt(high / low)
        return f"for example {'up' if upper else 'down'} to {high * reach if upper else low / reach:.3g}"
    reach = (high - low) / 2
    return f"for example {'up' if upper else 'down'} to {high + reach if upper else low - reach:.3g}"


def _trend(parameter: Parameter, trials: Sequence[FrozenTrial]) -> float | None:
    """Spearman's rank correlation of loss with the parameter's value, or None if it is not significant."""
    done = ranked(trials)
    values = [trial.params[parameter.key] for trial in done]
    if len(done) < 4 or len(set(values)) < 2:
        return None
    result = spearmanr(values, [trial.value for trial in done])
    return float(result.statistic) if result.pvalue < TREND else None


def best_keys(setup: Setup, best: FrozenTrial) -> dict[str, Any]:
    """Keys that the target takes from the search: the best parameters and the keys tied to them."""
    return {**best.params, **tied_changes(setup.args, best.params)}


def write_best(path: Path, setup: Setup, best: FrozenTrial) -> None:
    """Write the best parameters as an overlay. Dotted keys become nested ones; a comment names the search."""
    overlay: dict[str, Any] = {"overlay": True}  # its keys override those of the target's file
    for key, value in best_keys(setup, best).items():
        top, *rest = key.split(".")
        section, last = overlay, top.replace("_", "-")
        for name in rest:
            section, last = section.setdefault(last, {}), name
        section[last] = value
    widths = sorted({run.hidden_size for run in runs_of(setup.args, setup.space)})
    header = (
        f"# Trial {best.number} of the search {setup.name!r} ({len(setup.space.parameters)} parameters, "
        f"{setup.space.sampler}), loss {best.value:.4f} at hidden-size {', '.join(map(str, widths))}.\n"
    )
    write_atomically(path, header + yaml.safe_dump(overlay, sort_keys=False))


def verdict(best: FrozenTrial, second: FrozenTrial | None, noise: Noise | None) -> str:
    """Compare the lead of the best trial over the second with the seed noise."""
    if second is None:
        return "only one trial: nothing to compare it with"
    lead = loss_of(second) - loss_of(best)
    if noise is None:
        return f"the best leads the second by {lead:.4f}; the seed noise is unknown: add --confirm 2, or `seeds`"
    error = noise.std * math.sqrt(2.0 / max(len(best.user_attrs.get("runs", {})), 1))
    said = "the lead is significant" if lead > 2 * error else "the two are equal within noise"
    return (
        f"the best leads the second by {lead:.4f}; seed noise is {error:.4f} (one standard deviation of a "
        f"difference, from {noise.degrees} degrees of freedom): {said}"
    )
