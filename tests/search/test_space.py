"""The space file, the samplers and the configurations of trials."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from muneox.search.proxy import TrialRun, check_space, describe, runs_of, trial_args, width_changes
from muneox.search.samplers import distributions, grid_size, planner
from muneox.search.setup import DEFAULT_SPACE
from muneox.search.space import Parameter, Space, load_space, parse_space
from muneox.search.storage import differing


@pytest.fixture
def args(proxy: Path) -> NeoXArgs:
    return NeoXArgs.from_ymls([proxy], world_size=1)


def space_of(args: NeoXArgs, parameters: dict[str, Any], **rest: Any) -> Space:
    return parse_space({"parameters": parameters, **rest}, args)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"parameters": {"learning-rat": [1.0]}}, "unknown key 'learning-rat'"),
        ({"parameters": {"mup-init-scal": [1.0]}}, "did you mean 'mup_init_scale'"),
        ({"parameters": {"lr": {"low": 1e-2, "high": 1e-3, "log": True}}}, "lr: the range from 0.01 to 0.001 is empty"),
        ({"parameters": {"lr": {"low": 1e-3, "high": 1e-3}}}, "is empty"),
        ({"parameters": {"lr": {"low": 0.0, "high": 1.0, "log": True}}}, "above 0"),
        ({"parameters": {"lr": {"low": "a", "high": 1.0}}}, "lr: low and high must be numbers"),
        ({"parameters": {"lr": {"low": 1e-3, "hihg": 1.0}}}, "did you mean 'high'"),
        ({"parameters": {"lr": []}}, "lr: the list is empty"),
        ({"parameters": {"lr": [1e-3, 1e-3]}}, "given twice"),
        ({"parameters": {"lr": [1e-3], "optimizer.params.lr": [1e-3]}}, "lr is given twice"),
        ({"parameters": {"lr": 1e-3}}, "expected a list or {low"),
        ({"parameters": {"activation": {"low": 1, "high": 2}}}, "activation has no range"),
        ({"parameters": {"hidden-size": [16, 32]}}, "give `widths`"),
        ({"parameters": {"seed": [1, 2]}}, "give `seeds`"),
        ({"parameters": {"mup-rp-embedding-mult": [1.0, 2.0]}}, "no relative positions"),
        ({"parameters": {}}, "at least one key"),
        ({"parameters": {"lr": {"low": 1e-3, "high": 1.0}}, "sampler": "grid"}, "lr: a grid needs"),
        ({"parameters": {"lr": [1e-3]}, "sampler": "cmaes"}, "'cmaes' is not one of"),
        ({"parameters": {"lr": [1e-3]}, "pruner": "asha"}, "'asha' is not one of"),
        ({"parameters": {"lr": [1e-3]}, "width": [64]}, "did you mean 'widths'"),
        ({"parameters": {"lr": [1e-3]}, "widths": [64, 64]}, "twice"),
        ({"parameters": {"lr": [1e-3]}, "seeds": "1"}, "seeds: expected a list"),
    ],
)
def test_a_wrong_space_is_refused_with_its_key(args: NeoXArgs, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=".") as error:
        parse_space(values, args)
    assert said in str(error.value)


def test_the_error_names_the_file(args: NeoXArgs, tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text("parameters: {nonsense: [1]}")
    with pytest.raises(ConfigError, match=r"my\.yml: parameters: unknown key 'nonsense'"):
        load_space(tmp_path / "my.yml", args)


def test_mup_keys_are_refused_in_sp(args: NeoXArgs) -> None:
    with pytest.raises(ConfigError, match="has no effect without use-mup"):
        space_of(args.replace(use_mup=False), {"mup-output-temp": [1.0, 2.0]})


def test_the_default_space_is_that_of_tensor_programs_v(args: NeoXArgs) -> None:
    space = load_space(DEFAULT_SPACE, args)
    names = ["lr", "mup_init_scale", "mup_attn_temp", "mup_output_temp", "mup_embedding_mult"]
    assert [p.key for p in space.parameters] == names and space.dropped == ("mup_rp_embedding_mult",)
    assert all(p.log and not p.choices for p in space.parameters)
    check_space(args, space)


@given(
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.01, 1e5),
    u=st.floats(0, 1, exclude_max=True),
    log=st.booleans(),
)
def test_values_stay_in_the_range_and_position_inverts_at(low: float, factor: float, u: float, log: bool) -> None:
    parameter = Parameter("lr", low, low * factor, log)
    value = parameter.at(u)
    assert low <= value <= low * factor
    assert parameter.position(value) == pytest.approx(u, abs=1e-6)


SAMPLED = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "mup-output-temp": {"low": 0.25, "high": 4.0, "log": True}}


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_trial_k_does_not_depend_on_the_trials_before_it(args: NeoXArgs, sampler: str) -> None:
    space = space_of(args, SAMPLED, sampler=sampler)
    plan = planner(space)
    forwards = [plan(k, []) for k in range(12)]
    assert [planner(space)(k, []) for k in reversed(range(12))] == forwards[::-1]
    assert len({params["lr"] for params in forwards}) == 12
    other = planner(space_of(args, SAMPLED, sampler=sampler, seed=2))
    assert other(0, []) != forwards[0]


def test_log_uniform_is_uniform_in_the_logarithm(args: NeoXArgs) -> None:
    plan = planner(space_of(args, SAMPLED, sampler="qmc"))
    logs = [math.log10(plan(k, [])["lr"]) for k in range(64)]
    for edge in (-4, -3, -2):  # Sobol puts a third of 64 points in each decade, up to about one point
        assert abs(sum(edge <= x < edge + 1 for x in logs) - 64 / 3) <= 2


def test_a_grid_takes_every_point_once(args: NeoXArgs) -> None:
    space = space_of(
        args,
        {"lr": {"low": 1e-3, "high": 1e-1, "log": True, "points": 3}, "mup-output-temp": [1.0, 0.5]},
        sampler="grid",
    )
    points = [tuple(planner(space)(k, []).values()) for k in range(grid_size(space))]
    expected = itertools.product([1e-3, 1e-2, 1e-1], [0.5, 1.0])
    assert points == [(pytest.approx(lr), temp) for lr, temp in expected]


def test_tpe_depends_only_on_the_history(args: NeoXArgs) -> None:
    space = space_of(args, SAMPLED, sampler="tpe")
    plan, kinds = planner(space), distributions(space)
    trials: list[FrozenTrial] = []
    for k in range(14):
        params = plan(k, trials)
        assert params == planner(space)(k, trials)
        loss = abs(math.log10(params["lr"]) + 2)
        trials.append(create_trial(params=params, distributions=kinds, value=loss, state=TrialState.COMPLETE))
    worse = [
        create_trial(params=t.params, distributions=kinds, value=-(t.value or 0.0), state=TrialState.COMPLETE)
        for t in trials
    ]
    assert plan(14, trials) != plan(14, worse)


def test_widths_grow_heads_where_base_heads_are_set(args: NeoXArgs) -> None:
    assert width_changes(args, 64) == {"hidden_size": 64, "num_attention_heads": 8, "num_kv_heads": 8}
    fixed = args.replace(mup_base_num_attention_heads=None)
    assert width_changes(fixed, 64) == {"hidden_size": 64}
    with pytest.raises(ConfigError, match="num_attention_heads 2 at hidden-size 16 would become 2.5"):
        width_changes(args, 20)


def test_a_trial_keeps_the_shape_of_the_schedule(args: NeoXArgs) -> None:
    trial = trial_args(args, {"lr": 0.5, "mup_output_temp": 2.0}, TrialRun(32, 7))
    assert (trial.lr, trial.min_lr) == (0.5, pytest.approx(0.05))
    assert (trial.mup_output_temp, trial.hidden_size, trial.num_attention_heads, trial.seed) == (2.0, 32, 4, 7)
    assert trial.mup_base_hidden_size == 16 and not trial.do_test and trial.save is None
    assert args.lr == 0.01


def test_a_value_that_cannot_be_trained_is_refused_before_the_search(args: NeoXArgs) -> None:
    with pytest.raises(ConfigError, match="warmup: 1.5 cannot be trained"):
        check_space(args, space_of(args, {"warmup": [0.1, 1.5]}))


def test_descriptions_distinguish_searches_and_ignore_logging(args: NeoXArgs) -> None:
    space = space_of(args, SAMPLED)
    same = describe(args.replace(log_dir="elsewhere", save="x", lr=0.5, log_interval=1), space)
    assert differing(describe(args, space), same) == []
    for changed in ({"train_iters": 7}, {"seed": 3}, {"init_method_std": 0.1}):
        assert differing(describe(args, space), describe(args.replace(**changed), space)), changed
    narrower = space_of(args, {**SAMPLED, "lr": {"low": 1e-3, "high": 1e-1, "log": True}})
    assert differing(describe(args, space), describe(args, narrower)) == [
        "space.parameters.lr.low is 0.0001 there and 0.001 here"
    ]


def test_runs_of_a_trial_are_widths_times_seeds(args: NeoXArgs) -> None:
    assert runs_of(args, space_of(args, SAMPLED)) == [TrialRun(16, 1234)]
    runs = runs_of(args, space_of(args, SAMPLED, widths=[32, 16], seeds=[1, 2]))
    assert runs == [TrialRun(16, 1), TrialRun(16, 2), TrialRun(32, 1), TrialRun(32, 2)]
