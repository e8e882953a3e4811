"""Report of a finished search: noise, neighbours, edges and the overlay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from muneox.search import outcome
from muneox.search.proxy import TrialRun, check_target
from muneox.search.samplers import distributions, planner
from muneox.search.space import Parameter, Space
from muneox.search.stages import ranked

LR = Parameter("lr", 1e-4, 1e-1, True)
SPACE = Space((LR, Parameter("mup_output_temp", 0.25, 4.0, True)))


def trial(
    number: int, space: Space, params: dict[str, Any], value: float, runs: dict[str, float] | None = None
) -> FrozenTrial:
    made = create_trial(
        params=params,
        distributions=distributions(space),
        value=value,
        state=TrialState.COMPLETE,
        user_attrs={"runs": {name: {"loss": loss} for name, loss in (runs or {}).items()}},
    )
    made.number = number
    return made


def bowl(space: Space, centre: dict[str, float], number: int = 24) -> list[FrozenTrial]:
    """Random trials on a parabola in the logarithms, with its bottom at `centre`."""
    plan = planner(space)
    points = [plan(k, []) for k in range(number)]
    return [
        trial(k, space, point, 2 + sum(math.log(point[key] / bottom) ** 2 for key, bottom in centre.items()))
        for k, point in enumerate(points)
    ]


@dataclass
class FakeStage:
    trials: list[FrozenTrial]
    runs: tuple[TrialRun, ...]

    @property
    def study(self) -> Any:
        return SimpleNamespace(get_trials=lambda deepcopy: self.trials)


def test_ranking_excludes_diverged_and_failed_trials() -> None:
    good, inf = (
        trial(1, SPACE, {"lr": 0.01, "mup_output_temp": 1.0}, 2.0),
        trial(0, SPACE, {"lr": 0.1, "mup_output_temp": 1.0}, math.inf),
    )
    failed = create_trial(params=good.params, distributions=distributions(SPACE), state=TrialState.FAIL)
    assert ranked([inf, failed, good]) == [good]


@pytest.mark.parametrize(("bottom", "end"), [(1e-5, "down to"), (2.0, "up to")])
def test_an_optimum_beyond_the_space_is_reported_with_a_wider_range(bottom: float, end: str) -> None:
    trials = bowl(SPACE, {"lr": bottom, "mup_output_temp": 1.0})
    [said] = outcome.edge_warnings(SPACE, ranked(trials)[0], trials)
    assert said.startswith("lr: the best value") and "the loss falls towards it" in said and end in said


def test_an_optimum_inside_the_space_is_not_an_edge() -> None:
    trials = bowl(SPACE, {"lr": 3e-3, "mup_output_temp": 1.0}, 64)
    assert outcome.edge_warnings(SPACE, ranked(trials)[0], trials) == []


def test_an_edge_without_a_trend_in_the_loss_is_not_urgent() -> None:
    trials = bowl(SPACE, {"lr": 3e-3})
    best = trial(99, SPACE, {"lr": 3e-3, "mup_output_temp": 3.9}, 1.9)
    [said] = outcome.edge_warnings(SPACE, best, [*trials, best])
    assert "mup_output_temp" in said and "not urgent" in said


def test_a_grid_warns_at_its_first_and_last_value_only() -> None:
    space = Space((Parameter("lr", choices=(1e-3, 3e-3, 1e-2, 3e-2)),), "grid")
    losses = {1e-3: 2.3, 3e-3: 2.2, 1e-2: 2.1, 3e-2: 2.0}
    trials = [trial(k, space, {"lr": lr}, loss) for k, (lr, loss) in enumerate(losses.items())]
    [said] = outcome.edge_warnings(space, trials[-1], trials)
    assert "widen it, for example up to 0.164" in said
    assert outcome.edge_warnings(space, trials[2], trials) == []


def test_neighbours_are_nearest_in_the_scale_of_the_space() -> None:
    best = trial(0, SPACE, {"lr": 1e-2, "mup_output_temp": 1.0}, 2.0)
    near = trial(1, SPACE, {"lr": 2e-2, "mup_output_temp": 1.0}, 2.1)
    far = trial(2, SPACE, {"lr": 1e-2, "mup_output_temp": 4.0}, 2.05)
    found = outcome.neighbours(SPACE, best, [far, best, near])
    assert [(pytest.approx(d), t.number) for d, t in found] == [
        (math.log10(2) / 3 / math.sqrt(2), 1),
        (0.5 / math.sqrt(2), 2),
    ]


def test_seed_noise_is_pooled_within_settings_and_widths() -> None:
    generator = np.random.default_rng(0)
    runs = tuple(TrialRun(width, seed) for width in (16, 32) for seed in range(4))
    params = [{"lr": 10.0 ** -(1 + k / 20), "mup_output_temp": 1.0} for k in range(40)]
    trials = [
        trial(k, SPACE, p, 2.0, {run.name: k + run.hidden_size + 0.01 * generator.standard_normal() for run in runs})
        for k, p in enumerate(params)
    ]
    noise = outcome.seed_noise([FakeStage(trials, runs)])  # type: ignore[list-item]
    assert noise is not None and noise.degrees == 40 * 2 * 3
    assert noise.std == pytest.approx(0.01, rel=0.15)
    assert outcome.seed_noise([FakeStage(trials, runs[:1])]) is None  # type: ignore[list-item]


def test_the_verdict_compares_the_lead_with_the_noise() -> None:
    best, second = (
        trial(k, SPACE, {"lr": 1e-2, "mup_output_temp": 1.0}, loss, {"w16-s1": loss})
        for k, loss in enumerate((2.0, 2.1))
    )
    assert "the lead is significant" in outcome.verdict(best, second, outcome.Noise(0.01, 8))
    assert "equal within noise" in outcome.verdict(best, second, outcome.Noise(0.1, 8))
    assert "unknown" in outcome.verdict(best, second, None)


def test_a_proxy_as_large_as_its_target_is_refused(proxy: Path) -> None:
    args = NeoXArgs.from_ymls([proxy], world_size=1)
    target = args.replace(hidden_size=64, num_attention_heads=8)
    assert check_target(args, SPACE, target).params > 0
    for space, aim in ((SPACE, args), (Space(SPACE.parameters, widths=(16, 64)), target)):
        with pytest.raises(ConfigError, match="is as large as its target"):
            check_target(args, space, aim)
