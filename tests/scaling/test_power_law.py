"""Tests of L(x) = a x^b + c: noiseless laws, units of x, published tables and invalid input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from megatron.errors import DataError
from muneox.scaling.departure import matern
from muneox.scaling.power_law import PowerLaw, bootstrap_power_law, fit_power_law, sample_power_law
from muneox.scaling.prior import Exponents, Prior
from muneox.scaling.separable import project, residuals, sample_posterior

# Mu-scaling: ten widths of a 12-layer model in muP, parameters in units of 2^20, training loss at step 20k.
MU_SCALING = np.array([
    [8.53, 3.9181], [21.56, 3.6054], [39.09, 3.4431], [61.12, 3.3542], [87.65, 3.2902], [118.68, 3.2478],
    [154.21, 3.224], [194.24, 3.1797], [676.48, 3.0854], [1446.72, 3.0425],
]).T  # fmt: skip
# nanoLM: millions of parameters, losses with two decimals, and the largest error allowed.
NANOLM = {
    "gpt 7k": ([8.82, 22.36, 40.61, 63.59, 91.28, 123.69, 160.82, 202.67],
               [4.52, 4.25, 4.16, 4.10, 4.04, 4.01, 4.00, 3.98], 0.001),
    "gpt 20k": ([8.82, 22.36, 40.61, 63.59, 91.28, 123.69, 160.82, 202.67],
                [4.45, 4.20, 4.05, 3.94, 3.90, 3.87, 3.85, 3.84], 0.009),
    "llama 20k": ([9.59, 25.47, 47.64, 76.10, 110.85, 151.90, 199.24, 252.86],
                  [4.49, 4.31, 4.24, 4.20, 4.18, 4.17, 4.11, 4.10], 0.006),
}  # fmt: skip
SIZES = np.geomspace(10, 300, 8)

laws = st.builds(
    PowerLaw,
    a=st.floats(0.5, 20),
    b=st.floats(-1.2, -0.05),
    c=st.one_of(st.just(0.0), st.floats(0.3, 3)),
)


@settings(max_examples=40)
@given(law=laws, count=st.integers(4, 12), decades=st.floats(0.8, 3))
def test_noiseless_laws_are_recovered(law, count, decades):
    x = np.geomspace(1, 10**decades, count)
    fit = fit_power_law(x, law(x))
    assert fit.rms < 1e-7
    assert fit.law.b == pytest.approx(law.b, rel=1e-3)
    assert fit.law(x[-1] * 3) == pytest.approx(law(x[-1] * 3), rel=1e-5)


@settings(max_examples=20)
@given(scale=st.floats(1e-6, 1e9), seed=st.integers(0, 50))
def test_units_of_x_do_not_matter(scale, seed):
    y = PowerLaw(6, -0.35, 2)(SIZES) * (1 + 0.003 * np.random.default_rng(seed).standard_normal(len(SIZES)))
    one, other = fit_power_law(SIZES, y).law, fit_power_law(scale * SIZES, y).law
    assert other.b == pytest.approx(one.b, rel=1e-5)
    assert other.c == pytest.approx(one.c, rel=1e-5)
    assert other(3000 * scale) == pytest.approx(one(3000), rel=1e-7)


def test_the_posterior_does_not_depend_on_the_unit_of_x():
    y = PowerLaw(6, -0.35, 2)(SIZES) * (1 + 0.003 * np.random.default_rng(0).standard_normal(8))
    one, other = (sample_power_law(k * SIZES, y).observe([2000 * k]) for k in (1.0, 1e6))
    assert np.quantile(other, [0.05, 0.5, 0.95]) == pytest.approx(np.quantile(one, [0.05, 0.5, 0.95]), rel=1e-6)


def test_the_fit_equals_that_of_a_general_optimizer():
    x, y = MU_SCALING
    mine = fit_power_law(x, y).law
    peer, _ = curve_fit(lambda v, a, b, c: a * v**b + c, x, y, [3, -0.4, 2.8], sigma=y, ftol=1e-14, xtol=1e-14)
    assert [mine.a, mine.b, mine.c] == pytest.approx(peer, rel=1e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 200))
def test_projection_is_nonnegative_least_squares(seed):
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(5, 7, 3)) + 0.5
    y, weights = rng.uniform(1, 3, 7), rng.uniform(0.1, 2, (2, 7))
    coefficients, rss = project(columns, y, weights)
    assert coefficients.shape == (2, 5, 3) and (coefficients >= 0).all()
    for b, g in np.ndindex(2, 5):
        best, left = residuals(columns[g], y, weights[b])
        assert rss[b, g] == pytest.approx((left**2).sum(), rel=1e-6, abs=1e-9)
        assert coefficients[b, g] == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_collinear_columns_do_not_change_the_projection():
    rng = np.random.default_rng(0)
    y, weights = rng.uniform(1, 3, 9), rng.uniform(0.1, 2, 9)
    power = np.geomspace(1, 9, 9) ** -0.5
    columns = np.stack([np.ones(9), power, 3 * np.ones(9)], -1)
    _, both = project(columns[None], y, weights)
    _, alone = project(columns[None, :, :2], y, weights)
    assert both == pytest.approx(alone, rel=1e-9)
    exponents = Exponents((0.1,), (2.0,), 20, (0.4,), (0.5,))
    with pytest.raises(DataError, match="vary together in these runs and cannot be separated"):
        sample_posterior(lambda theta: np.repeat(columns[None], len(theta), 0), y, exponents)


def test_mu_scaling_three_widths_from_seven():
    x, y = MU_SCALING
    draws = sample_power_law(x[:7], y[:7]).observe(x[7:])
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    assert np.abs(middle - y[7:]).mean() <= 0.0066
    assert ((low <= y[7:]) & (y[7:] <= high)).all()
    assert ((high - low) / 2 / middle < 0.025).all()  # at 9.4 times the size; wide intervals would cover trivially


@pytest.mark.parametrize("series", NANOLM)
def test_nanolm_eighth_width_from_seven(series):
    x, y, bound = NANOLM[series]
    draws = sample_power_law(x[:7], y[:7]).observe(x[7:])
    assert abs(np.median(draws) / y[7] - 1) <= bound
    assert np.quantile(draws, 0.05) <= y[7] <= np.quantile(draws, 0.95)


def test_the_interval_grows_with_the_extrapolation_and_shrinks_with_runs():
    x, y = MU_SCALING
    low, high = np.quantile(sample_power_law(x[:7], y[:7]).observe([160, 700, 3000, 12000]), [0.05, 0.95], axis=0)
    assert (np.diff(high - low) > 0).all()
    more = np.quantile(sample_power_law(x, y).observe([12000]), [0.05, 0.95])
    assert more[1] - more[0] < 0.7 * (high - low)[3]


def test_an_exact_law_is_more_certain_than_one_with_a_departure():
    x, y = MU_SCALING
    widths = []
    for tau in (0.0, 1e-3, 5e-3):
        low, high = np.quantile(sample_power_law(x, y, prior=Prior(tau=tau)).observe([6000]), [0.05, 0.95])
        widths.append(high - low)
    assert widths[0] < widths[1] < widths[2]


def test_many_runs_pin_the_exponent():
    """The posterior is sharp; a coarse grid would miss it."""
    rng = np.random.default_rng(0)
    x = 10 ** rng.uniform(1, 4, 600)
    posterior = sample_power_law(x, (5 * x**-0.35 + 2) * (1 + 0.004 * rng.standard_normal(600)))
    assert posterior.b.std() < 0.006 and abs(posterior.b.mean() + 0.35) < 4 * posterior.b.std()
    assert np.median(posterior.draws.sigma) == pytest.approx(0.004, rel=0.15)
    assert np.median(posterior.draws.tau) < 0.003


def test_the_same_seed_gives_the_same_draws():
    x, y = MU_SCALING
    first, again, other = (sample_power_law(x, y, seed=seed).observe([3000]) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_noisy_runs_count_less():
    x = np.repeat(SIZES, 2)
    y = np.asarray(PowerLaw(6, -0.35, 2)(x))
    y[1::2] *= 1.05
    variance = np.tile([1.0, 400.0], 8)
    assert sample_power_law(x, y, variance=variance).law([1000]).mean() == pytest.approx(2 + 6 * 1000**-0.35, rel=0.005)
    assert fit_power_law(x, y, weights=1 / variance).law(1000) == pytest.approx(2 + 6 * 1000**-0.35, rel=0.003)


def test_the_bootstrap_has_the_spread_of_repeated_experiments():
    rng, x = np.random.default_rng(0), np.repeat(np.geomspace(10, 1000, 15), 4)
    truth = np.asarray(PowerLaw(6, -0.4, 2)(x))
    worlds = [truth * (1 + 0.005 * rng.standard_normal(len(x))) for _ in range(40)]
    repeated = np.std([fit_power_law(x, y).law.b for y in worlds])
    resampled = np.mean([bootstrap_power_law(x, y, samples=200)[:, 1].std() for y in worlds[:8]])
    assert resampled == pytest.approx(repeated, rel=0.35)


def test_the_bootstrap_resamples_groups_whole():
    x = np.tile(SIZES, 6)
    run = np.repeat(np.arange(6), 8)
    offset = 0.02 * np.random.default_rng(3).standard_normal(6)[run]
    y = np.asarray(PowerLaw(6, -0.35, 2)(x)) * (1 + offset)
    together = bootstrap_power_law(x, y, groups=list(run), samples=400)
    apart = bootstrap_power_law(x, y, samples=400)
    at = [(s[:, 0] * 50 ** s[:, 1] + s[:, 2]).std() for s in (together, apart)]
    assert at[0] > 1.7 * at[1]


def test_matern_is_a_correlation_of_the_distance():
    x = np.random.default_rng(0).normal(size=(30, 2))
    k = matern(x, x, 1.0)
    assert np.allclose(np.diag(k), 1) and np.allclose(k, k.T) and np.linalg.eigvalsh(k).min() > -1e-9
    # Rasmussen and Williams (2006), eq. 4.17, at a distance of 5 with a length of 2.
    expected = (1 + np.sqrt(3) * 5 / 2) * np.exp(-np.sqrt(3) * 5 / 2)
    assert matern(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]), 2.0)[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [3, 2], ["2 different sizes", "at least 3"]),
        ([1, 1, 2, 2], [3, 3, 2, 2], ["2 different sizes"]),
        ([0, 1, 2], [3, 2, 1], ["positive", "0"]),
        ([-1, 1, 2], [3, 2, 1], ["positive", "-1"]),
        ([1, 2, np.inf], [3, 2, 1], ["finite"]),
        ([1, 2, 3], [3, np.nan, 1], ["size 2", "nan", "diverged"]),
        ([1, 2, 3], [3, 2, -1], ["positive", "-1"]),
        ([1, 2, 3], [3, 2], ["3 sizes but 2 losses"]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], ["does not fall"]),
    ],
)
@pytest.mark.parametrize("fit", [fit_power_law, sample_power_law])
def test_input_that_cannot_be_fitted_raises_a_data_error(fit, x, y, words):
    with pytest.raises(DataError) as error:
        fit(x, y)
    assert all(word in str(error.value) for word in words), error.value
