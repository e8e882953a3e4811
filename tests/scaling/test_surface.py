"""Tests of L(N, D) and L(C)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from megatron.errors import DataError
from muneox.scaling.compute import envelope, training_flops
from muneox.scaling.surface import Surface, fit_surface, sample_surface

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
