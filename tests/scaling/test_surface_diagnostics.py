"""Checks of runs against L(N, D): accidents of known size are named, and good sweeps are not."""

from __future__ import annotations

import numpy as np
import pytest

from muneox.scaling.forecast import forecast_surface
from muneox.scaling.ladder import Point
from muneox.scaling.surface_diagnostics import (
    describe_surface,
    surface_inversions,
    surface_outliers,
)

N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 2e9, 6), np.geomspace(1e9, 4e10, 5)))
NAMES = [f"run {i}" for i in range(len(N))]


def drawn(seed, noise=0.002):
    rng = np.random.default_rng(seed)
    return (1.69 + 406.4 * N**-0.34 + 410.7 * D**-0.28) * (1 + noise * rng.standard_normal(len(N)))


def test_good_sweeps_have_no_warnings():
    found = [describe_surface(N, D, drawn(seed), NAMES) for seed in range(6)]
    assert sum(map(bool, found)) <= 1, found


def test_an_outlier_and_a_diverged_run_are_named():
    for seed in range(3):
        y = drawn(seed)
        y[8] *= 1.02
        y[21] *= 1.3
        flagged = {outlier.index: outlier for outlier in surface_outliers(N, D, y)}
        assert {8, 21} <= set(flagged) and len(flagged) <= 3  # each step has a chance of 1 % to name a good run
        assert flagged[21].diverged and not flagged[8].diverged
        assert flagged[8].excess == pytest.approx(0.02, abs=0.007)
        warnings = describe_surface(N, D, y, NAMES)
        assert warnings[0].startswith("run 21 seems to have diverged: +") and "run 8 is an outlier: +" in warnings[1]


def test_a_larger_run_that_is_worse_is_named_with_both_runs():
    y = drawn(0, noise=0.0005)
    assert surface_inversions(N, D, y) == []
    # Runs 22 and 23: the next larger size on the same tokens.
    assert D[22] == D[23] and N[23] > N[22]
    y[23] = 1.017 * y[22]
    assert surface_inversions(N, D, y) == [(22, 23)]
    (warning,) = [w for w in describe_surface(N, D, y, NAMES) if w.startswith("broken scaling")]
    assert warning.split(": ")[1].endswith("tokens") and "is 1.7% worse than" in warning
    assert warning.count("parameters on") == 2
    # The same rise within the noise of the other runs is not named.
    assert surface_inversions(N, D, np.where(np.arange(len(N)) == 23, 1.017 * drawn(1, 0.02)[22], drawn(1, 0.02))) == []


def test_a_surface_that_bends_and_runs_that_scatter_are_named():
    bent = drawn(0) * (1 + 0.01 * np.log(N / 3e8) ** 2)
    assert any("residuals bend (p = " in warning for warning in describe_surface(N, D, bent, NAMES))
    scattered = describe_surface(N, D, drawn(3, noise=0.08), NAMES)
    assert any(w.endswith("around the surface, so it does not describe them") for w in scattered)


def test_the_forecast_carries_the_warnings_of_the_runs_that_it_fits():
    y = drawn(0)
    y[14] *= 1.3
    points = [Point(*run) for run in zip(NAMES, N, y, ["drawn"] * len(N), D)]
    everything = forecast_surface(points, [(4e9, 8e10)], window=np.inf)
    assert any(warning.startswith("run 14 seems to have diverged") for warning in everything.warnings)
    found = forecast_surface(points, [(4e9, 8e10)])
    (reason,) = [reason for point, reason in found.left_out if point.name == "run 14"]
    assert reason.endswith("above the best at its FLOPs")
    truth = 1.69 + 406.4 * 4e9**-0.34 + 410.7 * 8e10**-0.28
    assert found.targets[0].predicted.value == pytest.approx(truth, rel=0.006) and truth in found.targets[0].predicted
