"""Tests of the annealing law: the sums of the paper, exact recovery, unseen schedules and the end of a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.errors import DataError
from muneox.scaling.annealing import AnnealingLaw, Curve, areas, fit_annealing, held_out, sample_annealing, schedule

LAW = AnnealingLaw(2.5, 20.0, 0.45, 4e-4, 0.998)
TOTAL, WARMUP = 3000, 200


def rates(kind, warmup=WARMUP, total=TOTAL):
    t = np.arange(1, total + 1)
    warm = np.minimum(1, t / max(warmup, 1))
    shapes = {
        "constant": np.ones(total),
        "cosine": 0.55 + 0.45 * np.cos(np.pi * t / total),
        "drop": np.where(t < 0.6 * total, 1.0, 0.3),
        "wsd": np.minimum(1, (total + 1 - t) / (total / 5)),
    }
    return 3e-4 * warm * shapes[kind]


def curve(kind, noise=0.0, seed=0, warmup=WARMUP, law=LAW, total=TOTAL, first=WARMUP):
    steps, rate = np.arange(first, total + 1, total // 120), rates(kind, warmup, total)
    loss = law(rate, steps) * (1 + noise * np.random.default_rng(seed).standard_normal(len(steps)))
    return Curve(steps, loss, rate)


@settings(max_examples=25)
@given(momentum=st.floats(0.9, 0.9999), seed=st.integers(0, 30))
def test_areas_match_the_sums_of_the_paper(momentum, seed):
    rate = np.random.default_rng(seed).uniform(0, 1e-3, 12)
    steps = np.array([1, 5, 12])
    first, second = areas(rate, steps, np.array([1 - momentum]))
    eta = np.concatenate([[0.0], rate / rate.max()])
    for i, s in enumerate(steps):
        double = sum((eta[k - 1] - eta[k]) * momentum ** (j - k) for j in range(1, s + 1) for k in range(1, j + 1))
        assert first[i] == pytest.approx(eta[1 : s + 1].sum())
        assert second[0, i] == pytest.approx(double, rel=1e-6, abs=1e-9)


def test_a_noiseless_law_is_recovered_and_predicts_other_schedules():
    law = fit_annealing([curve("constant"), curve("cosine"), curve("drop")])
    assert law.alpha == pytest.approx(LAW.alpha, rel=1e-4)
    assert law.momentum == pytest.approx(LAW.momentum, abs=1e-5)
    assert law(rates("wsd"), np.array([TOTAL])) == pytest.approx(LAW(rates("wsd"), np.array([TOTAL])), rel=1e-6)


def test_the_unit_of_the_learning_rate_does_not_matter():
    curves = [curve("cosine"), curve("drop")]
    scaled = [Curve(c.steps, c.loss, 1000 * c.rates) for c in curves]
    one, other = fit_annealing(curves), fit_annealing(scaled)
    assert [other.floor, other.alpha, other.gain] == pytest.approx([one.floor, one.alpha, one.gain], rel=1e-6)


def test_the_weight_of_a_curve_does_not_depend_on_how_often_it_was_logged():
    dense, other = curve("cosine", 0.002), curve("drop", 0.002, 1)
    thrice = Curve(np.repeat(dense.steps, 3), np.repeat(dense.loss, 3), dense.rates)
    one, two = fit_annealing([dense, other]), fit_annealing([thrice, other])
    assert two.alpha == pytest.approx(one.alpha, rel=1e-4)


def test_an_unseen_schedule_and_the_end_of_a_run_are_inside_their_intervals():
    posterior = sample_annealing([curve("cosine", 0.001), curve("constant", 0.001, 1), curve("drop", 0.001, 2)])
    end = np.array([TOTAL])
    low, high = np.quantile(posterior.observe(rates("wsd"), end), [0.05, 0.95])
    assert low < LAW(rates("wsd"), end)[0] < high and high - low < 0.03 * low
    whole = curve("cosine", 0.001)
    early = whole.steps <= 1500
    posterior = sample_annealing([Curve(whole.steps[early], whole.loss[early], whole.rates)])
    low, high = np.quantile(posterior.observe(whole.rates, end), [0.05, 0.95])
    assert low < LAW(whole.rates, end)[0] < high


@pytest.mark.parametrize(
    ("kinds", "warmup"),
    [(("cosine", "constant"), 0), (("constant", "drop"), WARMUP), (("constant", "constant", "wsd"), 0)],
)
def test_one_falling_rate_among_constant_ones_is_enough(kinds, warmup):
    """Without the falling rate S2 is a second constant, so the departure must not be estimated from that fit."""
    curves = [curve(kind, 0.001, i, warmup, total=24000, first=2200) for i, kind in enumerate(kinds)]
    posterior = sample_annealing(curves, draws=800)
    assert posterior.annealed and 0.001 <= posterior.departure < 0.02
    low, middle, high = np.quantile(posterior.draws.theta, [0.05, 0.5, 0.95], axis=0)
    assert (low < middle).all() and (middle < high).all()  # a sharp ridge, which a coarse grid reduces to a point
    end = np.array([24000])
    low, high = np.quantile(posterior.observe(curves[0].rates, end), [0.05, 0.95])
    assert low < LAW(curves[0].rates, end)[0] < high


def test_constant_rates_predict_their_own_future_but_no_annealing():
    truth = AnnealingLaw(2.5, 20.0, 0.45, 2e-3, 0.99)
    whole = [curve("constant", 0.001, seed, law=truth) for seed in (0, 1)]
    end = np.array([TOTAL])
    for count in (1, 2):
        early = [c.part((c.steps >= 500) & (c.steps <= 2000)) for c in whole[:count]]
        law, posterior = fit_annealing(early), sample_annealing(early)
        assert law.gain is None and not posterior.annealed
        low, high = np.quantile(posterior.observe(rates("constant"), end), [0.05, 0.95])
        assert low < truth(rates("constant"), end)[0] < high and high - low < 0.05 * low
        for predict in (law, posterior.observe):
            assert np.isfinite(predict(rates("wsd"), np.array([2300]))).all()  # before its decay
            with pytest.raises(DataError, match="does not fall"):
                predict(rates("wsd"), end)


def test_a_decay_late_in_a_single_run_is_split_within_it():
    """A split at two thirds would hold out the whole decay, which alone determines C."""
    [(kept, left)] = held_out([curve("wsd")])
    assert kept[0].fallen.any() and left.fallen.all()
    posterior = sample_annealing([curve("wsd", 0.001)])
    assert posterior.annealed and posterior.departure < 0.02


def test_schedule_interpolates_between_logged_steps():
    assert schedule([2, 4], [1.0, 0.5], 5).tolist() == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert schedule([4], [1.0], 5, warmup=4).tolist() == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("steps", "loss", "rate", "words"),
    [
        ([1, 2], [3.0], np.ones(2), "2 steps but 1 losses"),
        ([1, 5], [3.0, 2.0], np.ones(3), "steps 1 to 5; expected steps 1 to 3 of the schedule"),
        ([0, 1], [3.0, 2.0], np.ones(3), "steps 0 to 1; expected steps 1 to 3 of the schedule"),
        ([1, 2], [3.0, np.nan], np.ones(3), "finite"),
        ([1, 2], [3.0, 2.0], np.zeros(3), "zero"),
    ],
)
def test_an_invalid_curve_raises_a_data_error(steps, loss, rate, words):
    with pytest.raises(DataError, match=words):
        Curve(np.array(steps), np.array(loss), rate)


def test_too_few_points_raise_a_data_error():
    with pytest.raises(DataError, match="fewer than 8"):
        fit_annealing([Curve(np.arange(1, 6), np.linspace(4, 3, 5), np.ones(5))])
