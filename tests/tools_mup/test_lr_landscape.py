"""The landscape finds known minima and drifts with their intervals, and reports what it cannot decide."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from megatron.errors import DataError
from muneox.analysis.families import family
from muneox.analysis.lr_landscape import landscape
from muneox.commands import lr_landscape
from tests.tools_mup import synthetic


def judged(runs, metric="valid/loss", **options):
    return landscape(family(runs, "a landscape"), metric, **options)


def test_minima_and_drift_of_parabolas_are_exact():
    mup, sp = (lambda width: -7.3), (lambda width: -7.3 - 0.8 * math.log2(width / 64))
    result = judged([*synthetic.sweep(sp, use_mup=False), *synthetic.sweep(mup)])
    assert [drift.parametrization for drift in result.drifts] == ["muP", "SP"]
    assert result.drifts[0].slope == pytest.approx(0, abs=1e-9)
    assert result.drifts[1].slope == pytest.approx(-0.8, abs=1e-9)
    assert "it is stable" in result.drifts[0].verdict and "it moves" in result.drifts[1].verdict
    for basin in result.basins:
        expected = (mup if basin.parametrization == "muP" else sp)(basin.width)
        assert basin.log2_lr == pytest.approx(expected, abs=1e-9) and not basin.edge
        assert basin.loss == pytest.approx(2.5 - 0.1 * math.log2(basin.width / 64))
    assert result.step == 100 and result.warnings == []


def test_uneven_grids_have_the_right_vertex():
    runs = [synthetic.run(64, 2.0**x, final=2 + 0.1 * (x + 7.2) ** 2) for x in (-10, -8, -7.5, -6, -5.5)]
    assert judged(runs).basins[0].log2_lr == pytest.approx(-7.2)


def test_intervals_from_seeds_cover_the_truth():
    """Of 90 noisy basins, about 95 % have the true minimum within their 95 % interval."""
    draw, hits, total = np.random.default_rng(3), 0, 0
    for _ in range(45):
        place = -7.5 + draw.uniform(-0.5, 0.5)
        runs = synthetic.sweep(lambda width: place, widths=(64, 128), noise=0.01, draw=draw, seeds=(1, 2, 3))  # noqa: B023
        for basin in judged(runs, resamples=200).basins:
            hits += basin.low <= place <= basin.high
            total += 1
    assert 0.88 * total <= hits < total


def test_a_finer_grid_narrows_the_interval():
    spreads = []
    for rates in (np.arange(-10, -4.9), np.arange(-10, -4.9, 0.5), np.arange(-10, -4.9, 0.25)):
        draw = np.random.default_rng(5)
        sweeps = [synthetic.sweep(lambda width: -7.3, (64, 128), rates, noise=0.01, draw=draw) for _ in range(12)]
        spreads.append(np.mean([basin.high - basin.low for runs in sweeps for basin in judged(runs).basins]))
    assert spreads[0] > 1.15 * spreads[1] > 1.3 * spreads[2], spreads


def test_noise_that_hides_the_drift_is_reported():
    runs = synthetic.sweep(lambda width: -7.3, widths=(64, 128), noise=0.08, seeds=(1, 2))
    result = judged(runs)
    drift = result.drifts[0]
    assert drift.low < 0 < drift.high and "to decide, add seeds" in drift.verdict


def test_one_seed_gives_no_interval_and_a_warning():
    result = judged(synthetic.sweep(lambda width: -7.0, seeds=(1,)))
    assert result.basins[0].low is None and result.drifts[0].low is None
    assert any("second seed" in text for text in result.warnings)
    assert "stable, judging from one seed" in result.drifts[0].verdict


@pytest.mark.parametrize("place, edge, advice", [(-13, "lowest", "try lower"), (-2, "highest", "try higher")])
def test_minima_at_the_edge_are_reported_and_not_fitted(place, edge, advice):
    minimum = {64: -7.0, 128: -7.0, 256: place}
    result = judged(synthetic.sweep(minimum.get))
    assert [basin.edge for basin in result.basins] == ["", "", edge]
    assert result.drifts[0].widths == (64, 128) and "left out" in result.drifts[0].verdict
    assert any(advice in text and "width 256" in text for text in result.warnings)
    alone = judged(synthetic.sweep(lambda width: place))
    assert alone.drifts[0].slope is None
    assert alone.drifts[0].summary == "drift cannot be determined: best rate at the grid's edge"
    assert "the drift cannot be determined: best rate at the grid's edge" in alone.drifts[0].verdict


def test_diverged_runs_are_kept_and_bound_the_minimum():
    runs = synthetic.sweep(lambda width: -7.0, widths=(64,), log2_lrs=range(-10, -5), seeds=(1, 2))
    steps = (1, 25)
    runs = [r for r in runs if r.value("lr") != 2.0**-6]
    runs += [
        synthetic.run(64, 2.0**-6, 1, steps=steps, values=[5.0, math.nan]),
        synthetic.run(64, 2.0**-6, 2, values=[5.0, 5.5, 6.0, 7.0, 9.0]),
    ]
    result = judged(runs)
    by_status = {(p.lr, p.seed): p.status for p in result.points if p.status != "ok"}
    assert by_status == {(2.0**-6, 1): "diverged", (2.0**-6, 2): "diverged"}
    assert result.basins[0].edge == "divergence" and any("add rates between" in text for text in result.warnings)


def test_a_run_that_stopped_early_is_not_counted():
    runs = synthetic.sweep(lambda width: -7.0, widths=(64,), seeds=(1,))
    steps = (1, 25, 50)
    runs[0] = synthetic.run(64, 2.0**-11, 1, steps=steps, values=[5.0, 4.0, 0.1])
    result = judged(runs, metric="train/loss")
    assert result.points[0].status == "stopped" and "no `train/loss` at step 100" in result.points[0].note
    assert result.basins[0].log2_lr == pytest.approx(-7.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data_path": "data/y"}, "`data_path`, which differs: 'data/x' in .*; 'data/y' in"),
        ({"corpus": "b" * 64}, r"runs on one corpus, found 2: .* a{12}.* in .* b{12}\.\.\. in"),
        ({"iters": 200}, "`train_iters`, which differs: 100 in .*; 200 in"),
        ({"mup_init_scale": 2.0}, "in muP needs .*`mup_init_scale`, which differs"),
    ],
)
def test_runs_with_different_recipes_are_refused(change, message):
    runs = [*synthetic.sweep(lambda width: -7.0, widths=(64,)), synthetic.run(64, 2.0**-3, **change)]
    with pytest.raises(DataError, match=message):
        judged(runs)


def test_errors_name_the_missing_value():
    run = synthetic.run(64, 0.1)
    del run.config["model"]
    with pytest.raises(DataError, match="has no width: no number `hidden_size`"):
        family([run], "a landscape")
    run = synthetic.run(64, 0.1)
    del run.config["config"]["optimizer"]
    with pytest.raises(DataError, match="has no learning rate.*--lr-key"):
        judged([run])
    with pytest.raises(DataError, match="muP, width 64: 2 learning rate"):
        judged([synthetic.run(64, lr) for lr in (0.1, 0.2)])
    with pytest.raises(DataError, match="no run has logged `loss`"):
        judged([synthetic.run(64, 0.1)], metric="loss")


def test_the_tool_writes_figure_table_and_json(tmp_path, capsys):
    folder = synthetic.write(synthetic.sweep(lambda width: -7.3, widths=(64, 128), noise=0.005), tmp_path / "runs")
    synthetic.write(synthetic.sweep(lambda width: -7.3 - math.log2(width / 64), use_mup=False), folder)
    out = tmp_path / "out" / "lr"
    assert lr_landscape.main([str(folder), "--out", str(out), "--max-drift", "0.15"]) == 0
    printed = capsys.readouterr().out
    assert "muP: the best learning rate moves" in printed and "octaves per doubling" in printed
    assert (tmp_path / "out/lr.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "out/lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 8 * 3 + 3 * 8 * 3 and {row["status"] for row in rows} == {"ok"}
    stored = json.loads((tmp_path / "out/lr.json").read_text())
    assert [drift["parametrization"] for drift in stored["drifts"]] == ["muP", "SP"]
    only_sp = [str(folder), "--out", str(out), "--where", "use_mup=false"]
    assert lr_landscape.main([*only_sp, "--max-drift", "0.15"]) == 1
