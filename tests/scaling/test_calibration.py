"""Simulated ladders with a known law: unbiased fits, calibrated intervals, and flagged accidents."""

from __future__ import annotations

import numpy as np
import pytest

from muneox.scaling.diagnostics import find_outliers
from muneox.scaling.forecast import forecast_size
from muneox.scaling.ladder import Point


def ladder(rng, noise):
    """Eight sizes over one to two decades with three seeds, a target 2 to 8 times larger, its loss, and a, b, c."""
    c, b = rng.uniform(1.5, 2.5), rng.uniform(0.2, 0.5)
    a = rng.uniform(0.5, 2) * 10**b
    x = np.repeat(np.geomspace(10, 10 ** rng.uniform(2, 3), 8), 3)
    y = (c + a * x**-b) * (1 + noise * rng.standard_normal(len(x)))
    target = x.max() * np.exp(rng.uniform(np.log(2), np.log(8)))
    return x, y, target, (c + a * target**-b) * (1 + noise * rng.standard_normal()), {"a": a, "b": -b, "c": c}


def trial(count, seed):
    """Share of ladders [4] whose intervals contain the target, a, b and c; log of estimate over truth [n, 3]."""
    rng, inside, ratios = np.random.default_rng(seed), [], []
    for _ in range(count):
        x, y, target, actual, truth = ladder(rng, (0.002, 0.005)[len(inside) % 2])
        points = [Point(f"run {i}", *run, "drawn") for i, run in enumerate(zip(x, y))]
        found = forecast_size(points, [target])
        parameters = found.parameters
        inside.append([actual in found.targets[0].predicted, *(truth[name] in parameters[name] for name in "abc")])
        ratios.append([np.log(parameters[name].value / truth[name]) for name in "abc"])
    return np.mean(inside, 0), np.array(ratios)


def test_intervals_are_calibrated_over_two_dozen_ladders():
    covered, ratios = trial(24, 1)
    assert (covered >= 0.72).all(), covered  # three standard errors below 0.9
    assert (abs(ratios.mean(0)) < 3 * ratios.std(0) / np.sqrt(24) + 0.02).all()


@pytest.mark.slow
def test_intervals_are_calibrated_over_two_hundred_ladders():
    covered, ratios = trial(200, 2)
    assert ((covered >= 0.87) & (covered <= 0.93)).all(), covered
    assert (abs(ratios.mean(0)) < 0.03).all(), ratios.mean(0)


def test_outliers_and_a_diverged_run_are_flagged_and_good_ladders_are_not():
    rng, found, false = np.random.default_rng(5), 0, 0
    for _ in range(12):
        x, y, *_ = ladder(rng, 0.003)
        false += bool(find_outliers(x, y))
        y[10] *= 1.03
        y[19] *= 1.5
        flagged = {outlier.index: outlier.diverged for outlier in find_outliers(x, y)}
        found += flagged.get(10) is False and flagged.get(19) is True
    assert found >= 11 and false <= 1
