"""Tests of values at a step or token count, smoothing, comparison of recipes, and configuration values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import ConfigError, DataError
from muneox.runs import (
    Run,
    Series,
    Smoothing,
    at_step,
    at_tokens,
    common_steps,
    last,
    require_equal,
    require_same_corpus,
    smooth,
)


def a_run(name="r", config=None, **series):
    return Run(name, f"{name}.x", config or {}, {key: Series.of(*columns) for key, columns in series.items()})


def test_series_are_sorted_and_the_last_value_of_a_step_counts():
    series = Series.of([3, 1, 3, 2], [0.3, 0.1, 0.33, 0.2])
    assert series.steps.tolist() == [1, 2, 3] and series.values.tolist() == [0.1, 0.2, 0.33]


def test_value_at_a_step():
    run = a_run(loss=([10, 20], [3.0, 2.0]))
    assert at_step(run, "loss", 20) == 2.0 and last(run, "loss") == (20, 2.0)
    assert at_step(run, "loss", 15, interpolate=True) == 2.5
    with pytest.raises(DataError, match=r"r \(r\.x\) has no `loss` at step 15; nearest: 10 and 20"):
        at_step(run, "loss", 15)
    for step in (5, 25):
        with pytest.raises(DataError, match="it was logged from step 10 to 20"):
            at_step(run, "loss", step, interpolate=True)
    with pytest.raises(DataError, match="has no metric `los`; did you mean loss"):
        at_step(run, "los", 10)
    with pytest.raises(DataError, match="has logged no metrics"):
        at_step(a_run(), "loss", 10)


def test_value_at_a_token_count_as_logged_or_from_the_configuration():
    logged = a_run(loss=([10, 20], [3.0, 2.0]), tokens=([10, 20], [100, 300]))
    configured = a_run(config={"train_batch_size": 5, "model": {"seq-length": 2}}, loss=([10, 30], [3.0, 2.0]))
    assert at_tokens(logged, "loss", 200) == 2.5 and at_tokens(configured, "loss", 200) == 2.5
    with pytest.raises(DataError, match="from 100 to 300 tokens"):
        at_tokens(logged, "loss", 400)
    with pytest.raises(DataError, match="has no token count"):
        at_tokens(a_run(loss=([1], [1.0])), "loss", 1)


def test_common_steps():
    a, b = a_run("a", loss=([1, 2, 3], [1, 1, 1])), a_run("b", loss=([2, 3, 4], [1, 1, 1]))
    assert common_steps([a, b], "loss").tolist() == [2, 3]
    with pytest.raises(DataError, match="a and c have logged `loss` at no common step"):
        common_steps([a, a_run("c", loss=([9], [1]))], "loss")


@pytest.mark.parametrize("text", ["mean", "mean:0", "mean:x", "ewma:3", "mean:-1"])
def test_unknown_smoothing_is_rejected(text):
    with pytest.raises(ConfigError, match="smoothing"):
        Smoothing.parse(text)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(1, 9))
def test_smoothing_matches_its_definition(values, n):
    series = Series.of(range(len(values)), values)
    for kind, reduce in (("mean", np.mean), ("median", np.median)):
        expected = [reduce(values[max(0, i - n + 1) : i + 1]) for i in range(len(values))]
        np.testing.assert_allclose(smooth(series, Smoothing.parse(f"{kind}:{n}")).values, expected, atol=1e-9)
    weights = (1 - 2 / (n + 1)) ** np.arange(len(values))
    expected = [
        np.average(values[: i + 1], weights=weights[: i + 1][::-1]) if n > 1 else values[i] for i in range(len(values))
    ]
    np.testing.assert_allclose(smooth(series, Smoothing.parse(f"ema:{n}")).values, expected, atol=1e-9)
    assert smooth(series, Smoothing()) is series


def test_a_value_that_is_not_finite_affects_only_its_windows():
    series = Series.of(range(5), [1.0, np.nan, 1.0, 1.0, 1.0])
    assert np.isnan(smooth(series, Smoothing("mean", 2)).values).tolist() == [False, True, True, False, False]


def test_recipes_that_differ_are_reported_by_key_value_and_run():
    runs = [a_run("a", {"config": {"train_iters": 100, "lr": "1e-3"}}), a_run("b", {"train-iters": 100.0, "lr": 0.001})]
    assert require_equal(runs, ["train_iters", "lr", "no_such"], "a landscape") == {"train_iters": 100, "lr": "1e-3"}
    runs.append(a_run("c", {"train_iters": 200}))
    message = (
        "a landscape needs runs with the same `train_iters`, which differs: 100 in a, b; 200 in c; "
        "keep some of them with --where train_iters=100"
    )
    with pytest.raises(DataError, match=message):
        require_equal(runs, ["train_iters"], "a landscape")


def test_runs_on_different_corpora_are_rejected():
    here, there = ({"corpus": {"bytes": size, "sha256": digit * 64}} for size, digit in ((1234567, "a"), (89, "b")))
    assert require_same_corpus([a_run("a", here), a_run("b", here)], "a ladder") == "a" * 64
    assert require_same_corpus([a_run("a", {}), a_run("b", {})], "a ladder") is None
    both = r"found 2: 1,234,567 bytes with SHA-256 a{12}\.\.\. in a; 89 bytes with SHA-256 b{12}\.\.\. in b"
    with pytest.raises(DataError, match=f"a ladder needs runs on one corpus, {both}"):
        require_same_corpus([a_run("a", here), a_run("b", there)], "a ladder")
    with pytest.raises(DataError, match="an unrecorded corpus in b"):
        require_same_corpus([a_run("a", here), a_run("b", {})], "a ladder")


def test_configuration_values_are_found_in_every_section():
    config = {
        "config": {"hidden_size": 1, "optimizer": {"params": {"lr": 0.5, "betas": [0.9]}}, "zero": None},
        "model": {"hidden_size": 2, "params": 10},
        "a.b": 3,
        "deep": {"er": {"x-y": "1e-4", "nan": "nan", "yes": True}},
    }
    run = a_run("r", config)
    found = {name: run.number(name) for name in ("hidden-size", "params", "lr", "optimizer.params.lr", "a.b", "x_y")}
    assert found == {"hidden-size": 2, "params": 10, "lr": 0.5, "optimizer.params.lr": 0.5, "a.b": 3, "x_y": 1e-4}
    assert [run.number(name) for name in ("config.hidden_size", "deep.er.x-y")] == [1, 1e-4]
    assert [run.number(name) for name in ("betas", "zero", "nan", "yes", "optimizer", "none")] == [None] * 6
