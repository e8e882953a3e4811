"""The leave-one-dataset-out benchmark on a small folder of runs with known laws."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks folder, whose scripts import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def write(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def surface(n, d):
    return 1.7 + 400 * n**-0.34 + 410 * d**-0.28


@pytest.fixture
def folder(tmp_path):
    """Two ladders of one dataset, and an isoFLOP sweep of another."""
    rng = np.random.default_rng(0)
    for name in ("first_a", "first_b"):
        n = np.geomspace(1e7, 3e9, 8)
        loss = surface(n, 20 * n) * (1 + 0.001 * rng.standard_normal(8))
        write(tmp_path / f"{name}.csv", {"params": n, "tokens": 20 * n, "flops": 120 * n**2, "loss": loss})
    flops = np.repeat(np.geomspace(1e18, 1e21, 7), 5)
    n = np.sqrt(flops / 120) * np.tile([0.3, 0.6, 1, 1.8, 3], 7)
    d = flops / 6 / n
    loss = surface(n, d) * (1 + 0.001 * rng.standard_normal(35))
    write(tmp_path / "second.csv", {"params": n, "tokens": d, "flops": flops, "loss": loss})
    return tmp_path


def test_tables_have_the_laws_that_their_runs_allow(benchmark, folder):
    n = np.geomspace(1e7, 3e9, 6)
    write(folder / "third.csv", {"params": n, "loss": surface(n, 1e10)})
    write(folder / "fourth.csv", {"params": n, "tokens": n**0.5, "flops": n**1.5, "loss": surface(n, n**0.5)})
    write(folder / "settings.csv", {"name": ["no runs"]})
    found = {runs.name: (runs.dataset, runs.laws) for runs in benchmark("_published_tables").all_runs(folder)}
    assert found == {
        "first_a": ("first", ("size", "compute")),
        "first_b": ("first", ("size", "compute")),
        "second": ("second", ("compute", "surface")),
        "third": ("third", ("size",)),
        "fourth": ("fourth", ("compute",)),
    }


def test_held_out_runs_lie_beyond_the_fitted_ones_at_the_factor_of_their_cell(benchmark, folder):
    tables = benchmark("_published_tables").all_runs(folder)
    cases = benchmark("_held_out").held_out(tables)
    assert {case.law for case in cases} == {"size", "compute", "surface"}
    for case in cases:
        largest = case.runs.flops[case.fitted].max()
        assert set(np.flatnonzero(case.runs.flops <= largest)) == set(case.fitted)  # no run up to the budget is missing
        for (row, factor), places in case.cells.items():
            at = case.targets[places]
            reach = case.runs.flops[at] / largest
            assert (abs(np.log10(reach / factor)) <= 0.251).all()
            if row in ("compute", "surface"):
                same = case.runs.flops == case.runs.flops[at]
                assert case.runs.loss[at] == case.runs.loss[same].min()


def test_baselines_recover_an_exact_law(benchmark):
    module = benchmark("_baselines")
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 2e9, 5), np.geomspace(1e9, 1e11, 5)))
    at, target = np.stack([n, d], -1), np.array([[1e10, 1e12]])
    for fit in (module.plain, module.huber_fit):
        assert fit(at, surface(n, d), target) == pytest.approx(surface(1e10, 1e12), rel=5e-3)
    flops = np.geomspace(1e18, 1e21, 13)
    assert module.best_per_budget(flops, 2 + 1e3 * flops**-0.16, np.array([1e23])) == pytest.approx(
        2 + 1e3 * 1e23**-0.16, rel=1e-4
    )


def test_constants_are_chosen_without_the_dataset_that_they_are_judged_on(benchmark, folder):
    module = benchmark("_leave_one_out")
    cases = benchmark("_held_out").held_out(benchmark("_published_tables").all_runs(folder))

    def scores(good):
        """Interval scores of 0.01 for the datasets `good`, and of 1 for the others."""
        values = [np.full(len(c.targets), 0.01 if c.runs.dataset in good else 1.0) for c in cases]
        return [module.Score(v, np.ones(len(v), bool), v, v) for v in values]

    first, second = module.CANDIDATES["size"][:2]
    chosen = module.choose(cases, {first: scores({"first"}), second: scores({"second"})})
    assert chosen == {"first": second, "second": first}  # each dataset gets what suits the other


def test_the_benchmark_prints_and_writes_the_table(benchmark, folder, capsys):
    target = folder / "table.json"
    assert benchmark("published_runs").main(["--data", str(folder), "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "chosen without the dataset that they are judged on" in printed and "size, 30x" in printed
    assert "mu_scaling.csv is missing" in printed
    table = json.loads(target.read_text())
    assert {"size 3", "compute 30", "surface 10", "surface, any run 100"} <= set(table)
    near = table["surface 3"]
    assert near["errors"]["predictor"][0] < 0.005 and near["coverage"] > 0.6 and 0 < near["width"] < 0.05
    assert set(near["errors"]) == {"predictor", "curve_fit", "Huber", "best runs"}
