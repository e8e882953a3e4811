"""Parameters of trial k. They depend only on the space and k, except for TPE, which learns from the other trials.

No sampler keeps state that a killed process could lose, so an interrupted search draws the same parameters for
trial k as an undisturbed one. For TPE this holds as long as one worker runs at a time.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from muneox.search.space import Parameter, Space

Params = dict[str, Any]
Planner = Callable[[int, Sequence[FrozenTrial]], Params]


def grid_size(space: Space) -> int:
    """Number of points of the full grid."""
    return math.prod(len(parameter.grid_values()) for parameter in space.parameters)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna distribution of each parameter."""
    return {parameter.key: _distribution(parameter, space.sampler) for parameter in space.parameters}


def _distribution(parameter: Parameter, sampler: str) -> BaseDistribution:
    if parameter.choices or sampler == "grid":
        return CategoricalDistribution(parameter.grid_values() if sampler == "grid" else parameter.choices)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def planner(space: Space) -> Planner:
    """Return a function that maps a trial's number and the earlier trials to the trial's parameters."""
    return {"grid": _grid, "random": _random, "qmc": _qmc, "tpe": _tpe}[space.sampler](space)


def _grid(space: Space) -> Planner:
    """Full grid in the order of the file. The last parameter varies fastest."""
    names = [parameter.key for parameter in space.parameters]
    points = list(itertools.product(*(parameter.grid_values() for parameter in space.parameters)))
    return lambda k, _: dict(zip(names, points[k], strict=True))


def _at(space: Space, point: np.ndarray) -> Params:
    return {parameter.key: parameter.at(float(u)) for parameter, u in zip(space.parameters, point, strict=True)}


def _random(space: Space) -> Planner:
    """Random search (Bergstra and Bengio, JMLR 13, 2012): each trial has its own generator."""
    return lambda k, _: _at(space, np.random.default_rng([space.seed, k]).random(len(space.parameters)))


def _qmc(space: Space) -> Planner:
    """Scrambled Sobol sequence, which covers the space more evenly than random points."""
    from scipy.stats.qmc import Sobol

    def plan(k: int, _: Sequence[FrozenTrial]) -> Params:
        sequence = Sobol(len(space.parameters), scramble=True, seed=np.random.default_rng(space.seed))
        if k:
            sequence.fast_forward(k)
        with warnings.catch_warnings():  # SciPy warns that one point is not a power of two
            warnings.simplefilter("ignore", UserWarning)
            return _at(space, sequence.random(1)[0])

    return plan


def _tpe(space: Space) -> Planner:
    """Tree-structured Parzen estimator (Bergstra et al., NIPS 2011) on an in-memory copy of the study.

    Asking the shared study would write the parameters one by one. A process killed in between would leave a trial
    with only some of its parameters, and a sampler with an advanced generator.
    """
    space_of = distributions(space)

    def plan(k: int, trials: Sequence[FrozenTrial]) -> Params:
        seed = int(np.random.SeedSequence([space.seed, k]).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        mirror = optuna.create_study(sampler=sampler, storage=optuna.storages.InMemoryStorage())
        known = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        mirror.add_trials([trial for trial in trials[:k] if trial.state in known])
        return dict(mirror.ask(space_of).params)

    return plan
