"""Tests of L(N, D) and L(C)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from megatron.errors import DataError
from muneox.scaling.compute import envelope, training_flops
from muneox.scaling.surface import Surface, fit_surface, near_best, sample_surface, window_of

HOFFMANN = Surface(*np.array([1.69, 406.4, 0.34, 410.7, 0.28]))  # eq. 10 of arXiv:2203.15556
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 2e9, 5), np.geomspace(1e9, 1e11, 5)))


@settings(max_examples=15)
@given(alpha=st.floats(0.1, 0.8), beta=st.floats(0.1, 0.8), e=st.floats(0.5, 2.5))
def test_noiseless_surfaces_are_recovered(alpha, beta, e):
    truth = Surface(e, 1.5 * 2e8**alpha, alpha, 1.0 * 1e10**beta, beta)
    found = fit_surface(N, D, truth(N, D))
    assert found(N, D) == pytest.approx(truth(N, D), rel=1e-6)
    assert found(1e10, 1e12) == pytest.approx(truth(1e10, 1e12), rel=1e-4)


def test_the_compute_optimum_minimises_the_loss_of_a_budget():
    for flops in (1e20, 1e23):
        params, tokens = HOFFMANN.optimal(flops)
        assert training_flops(params, tokens) == pytest.approx(flops)
        found = minimize_scalar(
            lambda t, c=flops: float(HOFFMANN(np.exp(t), c / 6 / np.exp(t))), bounds=(15, 30), method="bounded"
        )
        assert np.log(params) == pytest.approx(found.x, abs=1e-2)


def test_the_posterior_contains_the_truth_and_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    y = HOFFMANN(N, D) * (1 + 0.003 * rng.standard_normal(len(N)))
    posterior = sample_surface(N, D, y)
    low, high = np.quantile(posterior.observe([1e10], [1e12]), [0.05, 0.95])
    assert low < HOFFMANN(1e10, 1e12) < high and (high - low) / 2 < 0.05 * low
    assert np.quantile(posterior.surface.alpha, 0.02) < 0.34 < np.quantile(posterior.surface.alpha, 0.98)
    inside = posterior.surface(1e10, 1e12)
    assert np.median(inside) == pytest.approx(np.median(posterior.law([1e10], [1e12])), rel=1e-9)
    scaled = sample_surface(N / 1e6, D / 1e9, y)
    assert np.median(scaled.law([1e4], [1e3])) == pytest.approx(np.median(inside), rel=1e-6)


def sweep(budgets, ratios, compute=(1e18, 1e21)):
    """Parameters and tokens of an isoFLOP sweep: `ratios` around 20 tokens per parameter at each budget."""
    flops = np.repeat(np.geomspace(*compute, budgets), len(ratios))
    params = np.sqrt(flops / 120) * np.tile(ratios, budgets)
    return params, flops / 6 / params


def test_the_runs_near_the_best_of_their_budget_are_kept():
    n, d = sweep(7, (0.1, 0.5, 1, 2, 10))
    loss = np.tile([1.3, 1.015, 1.0, 1.019, 1.03], 7) * np.repeat(np.geomspace(3.5, 2.5, 7), 5)
    assert near_best(n, d, loss).reshape(7, 5).tolist() == [[False, True, True, True, False]] * 7
    assert near_best(n, d, loss, 0.04).reshape(7, 5)[:, 4].all() and not near_best(n, d, loss, 0.04)[::5].any()
    assert near_best(n, d, loss, np.inf).all()


def test_a_window_with_too_few_runs_or_one_ratio_is_widened():
    n, d = sweep(4, (0.1, 0.5, 1, 2, 10))
    loss = np.tile([1.3, 1.05, 1.0, 1.04, 1.2], 4) * np.repeat(np.geomspace(3.5, 2.5, 4), 5)
    kept = near_best(n, d, loss).reshape(4, 5)
    assert kept.sum() == 12 and kept[:, 1:4].all()  # FEWEST
    n, d = sweep(14, (0.5, 1, 2))
    loss = np.tile([1.1, 1.0, 1.2], 14) * np.repeat(np.geomspace(3.5, 2.5, 14), 3)
    kept = near_best(n, d, loss).reshape(14, 3)
    assert kept[:, 1].all() and kept[:, 0].any()  # the best runs alone have one ratio of tokens to parameters
    assert near_best(n[1::3], d[1::3], loss[1::3]).all()


def test_runs_that_leave_the_surface_far_from_the_optimum_do_not_bend_the_forecast():
    """The truth is Hoffmann's surface near the optimum, and 3 % or more above it far from the optimum."""
    n, d = sweep(9, (0.05, 0.3, 0.6, 1, 1.6, 3, 20))
    far = np.abs(np.log(n / HOFFMANN.optimal(6 * n * d)[0])) > 1.7
    assert 0.2 < far.mean() < 0.4
    loss = HOFFMANN(n, d) * (1 + 0.05 * far) * (1 + 0.001 * np.random.default_rng(3).standard_normal(len(n)))
    best = HOFFMANN.optimal(1e23)
    near = near_best(n, d, loss)
    found = {name: sample_surface(n[k], d[k], loss[k]).law(*best) for name, k in (("near", near), ("all", n > 0))}
    error = {name: abs(np.median(draws) / HOFFMANN(*best) - 1) for name, draws in found.items()}
    assert error["near"] < 0.005 and error["all"] > 3 * error["near"], error


def test_the_window_of_a_target_grows_with_its_distance_from_the_optimum():
    n, d = sweep(9, (0.05, 0.2, 0.5, 1, 2, 5, 20))
    loss = HOFFMANN(n, d) * (1 + 0.0005 * np.random.default_rng(3).standard_normal(len(n)))
    flops = 1e22
    at = HOFFMANN.optimal(flops)[0] * np.array([1, 1.3, 6, 40])
    excess = HOFFMANN(at, flops / 6 / at) / HOFFMANN(*HOFFMANN.optimal(flops)) - 1
    found = window_of(n, d, loss, at, flops / 6 / at)
    assert found[:2].tolist() == [0.02, 0.02] and (found[2:] >= 2 * excess[2:]).all() and found[2] < found[3]
    assert (found[2:] <= 8.8 * excess[2:]).all()  # the last factor of 4, and 10 % for the fit
    assert np.isinf(window_of(n, d, loss, at, flops / 6 / at, window=np.inf)).all()


def test_a_departure_from_the_surface_widens_intervals_with_the_distance():
    n, d = sweep(8, (0.4, 1, 2.5))
    # A wave in log C of 0.5 %, which no surface follows.
    loss = HOFFMANN(n, d) * (1 + 0.005 * np.sin(np.log(n * d) * 1.3))
    posterior = sample_surface(n, d, loss)
    widths = []
    for flops in (2e21, 1e23):
        best = HOFFMANN.optimal(flops)
        low, high = np.quantile(posterior.observe(*best), [0.05, 0.95])
        widths.append((high - low) / HOFFMANN(*best))
    assert 0.004 < widths[0] < widths[1]
    assert np.median(posterior.draws.tau) > 0.002
    inside = posterior.observe(n[3:6], d[3:6])  # at fitted runs the departure is known
    assert np.median(inside, axis=0) == pytest.approx(loss[3:6], rel=2e-3)


def test_input_that_a_surface_cannot_fit_raises_a_data_error():
    with pytest.raises(DataError, match="at least 6"):
        fit_surface(N[:5], D[:5] * np.arange(1, 6), HOFFMANN(N, D)[:5])
    sizes = np.geomspace(1e8, 1e9, 8)
    with pytest.raises(DataError, match=r"L\(N, D\) cannot separate them"):
        sample_surface(sizes, 20 * sizes, HOFFMANN(sizes, 20 * sizes))


def test_the_envelope_takes_the_best_of_each_budget():
    flops = np.array([1e18, 1.1e18, 1e19, 1.2e19, 1e20, 1.1e20, 1e21])
    loss = np.array([3.5, 3.4, 3.2, 3.3, 3.25, 3.0, 2.8])
    assert envelope(flops, loss).tolist() == [1, 2, 5, 6]
    shuffled = np.random.default_rng(0).permutation(len(flops))
    assert flops[shuffled][envelope(flops[shuffled], loss[shuffled])].tolist() == flops[[1, 2, 5, 6]].tolist()
    with pytest.raises(DataError, match="only 1 budgets"):
        envelope([1e18, 1e19, 1e20], [3, 3.1, 3.2])
