"""Tests of the diagnostics, which flag broken scaling and no good ladder, of the backtest and of the next run."""

from __future__ import annotations

import numpy as np
import pytest

from megatron.errors import DataError
from muneox.scaling.backtest import backtest, coverage, mean_error, predict_held_out
from muneox.scaling.diagnostics import (
    bend,
    describe_ladder,
    find_outliers,
    inversions,
    not_collapsing,
)
from muneox.scaling.next_run import plan_next
from muneox.scaling.power_law import fit_power_law
from muneox.scaling.uncertainty import interval, noise_floor, seed_variance

X = np.geomspace(10, 400, 8)
RNG = np.random.default_rng(0)
Y = (2 + 6 * X**-0.35) * (1 + 0.001 * RNG.standard_normal(8))
NAMES = [f"run {i}" for i in range(8)]


def test_a_good_ladder_has_no_warnings():
    outliers, warnings = describe_ladder(X, Y, NAMES)
    assert not outliers and not warnings


@pytest.mark.parametrize("index", range(8))
def test_a_diverged_run_is_found_wherever_it_is(index):
    y = Y.copy()
    y[index] *= 1.6
    outliers, warnings = describe_ladder(X, y, NAMES)
    assert [o.index for o in outliers] == [index] and outliers[0].diverged
    assert f"run {index} seems to have diverged" in warnings[0]


def test_two_outliers_do_not_hide_each_other():
    y = Y.copy()
    y[[2, 3]] *= 1.05
    assert {o.index for o in find_outliers(X, y)} == {2, 3}


def test_no_outliers_are_reported_for_fewer_than_six_runs():
    assert find_outliers(X[:5], np.append(Y[:4], 9.0)) == []


def test_a_larger_size_that_is_worse_is_reported():
    assert inversions(X, Y) == []
    y = Y.copy()
    y[6] = y[5] * 1.01
    assert inversions(X, y) == [(X[5], X[6])]
    noisy = (2 + 6 * X**-0.35) * (1 + 0.03 * np.resize([1, -1], 8))
    noisy[6] = noisy[5] * 1.01
    assert inversions(X, noisy) == []  # within the noise of the other runs
    assert any("broken scaling" in text for text in describe_ladder(X, y, NAMES)[1]) or find_outliers(X, y)


def test_an_inversion_does_not_hide_in_a_noise_that_it_inflates():
    """With 1.7 % in the last pair, the scatter of all eight runs would allow 2 %."""
    y = 2 + 6 * X**-0.35
    y[7] = y[6] * 1.017
    assert 2 * np.sqrt(2) * fit_power_law(X, y).rms > 0.017
    assert inversions(X, y) == [(X[6], X[7])]


def test_bending_residuals_are_detected():
    assert bend(X, Y, fit_power_law(X, Y)) > 0.01
    x = np.geomspace(10, 1000, 12)
    broken = np.where(x < 100, 6 * x**-0.2, 6 * 100**0.5 * x**-0.7)
    assert bend(x, 2 + broken, fit_power_law(x, 2 + broken)) < 0.01


def test_a_run_that_does_not_collapse_is_reported():
    steps = np.arange(10, 1001, 10)
    curves = [(steps, 2 + 4 * x**-0.3 + 8 * x**-0.1 * steps**-0.5) for x in X]
    assert not_collapsing(X, curves, 2.0) == []
    values = curves[3][1].copy()
    values[50:80] += 0.2
    assert not_collapsing(X, [*curves[:3], (steps, values), *curves[4:]], 2.0) == [3]
    assert not_collapsing(X[:4], [*curves[:3], (steps, values)], 2.0) == []


def test_the_backtest_predicts_the_largest_from_the_smaller():
    runs = backtest(X, Y, draws=500)
    assert {h.sizes for h in runs} == {4, 5, 6, 7}
    assert [h.x for h in runs if h.sizes == 7] == [X[7]]
    assert all(h.extrapolation == pytest.approx(h.x / X[h.sizes - 1]) for h in runs)
    assert mean_error(runs) < 0.02 and coverage(runs) >= 0.7
    assert backtest(X[:4], Y[:4]) == [] and np.isnan(mean_error([]))


def test_the_backtest_never_sees_what_it_predicts():
    changed = Y.copy()
    changed[-1] *= 1.2
    before, after = (predict_held_out(X, y, X < X[-1], draws=500)[0] for y in (Y, changed))
    assert after.predicted == before.predicted and after.actual != before.actual


def test_the_plan_chooses_the_most_informative_affordable_run():
    plan = plan_next(X, Y, 4000, draws=300)
    costs = [c.cost for c in plan.candidates]
    widths = [c.half_width for c in plan.candidates]
    assert costs == sorted(costs) and max(costs) < 1
    assert widths[-1] < 0.8 * plan.half_width and widths[-1] < widths[0]
    assert plan.best is not None and plan.best.cost <= 0.35 and 0 < plan.best.shrink < 1
    with pytest.raises(DataError, match="not beyond"):
        plan_next(X, Y, 100)


def test_seed_noise_is_estimated_from_repeats():
    x, rng = np.repeat(X, 3), np.random.default_rng(1)
    noise = np.where(x < 60, 0.01, 0.002)
    y = (2 + 6 * x**-0.35) * (1 + noise * rng.standard_normal(24))
    variance = seed_variance(x, y)
    assert variance is not None and variance.mean() == pytest.approx(1)
    assert variance[x < 60].mean() > 1.5 * variance[x > 60].mean()
    assert seed_variance(X, Y) is None
    assert noise_floor(x, y)[1] == "repeated sizes" and 0.003 < noise_floor(x, y)[0] < 0.012
    assert noise_floor(X, Y)[1] == "residuals of the fit"


def test_an_interval_consists_of_quantiles():
    found = interval(np.arange(1001.0), 0.8)
    assert [found.value, found.low, found.high] == pytest.approx([500, 100, 900]) and 101 in found and 99 not in found
