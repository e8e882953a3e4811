"""The width check passes if wider is better, fails if it is not, and is robust to noise."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from megatron.errors import DataError
from muneox.analysis.families import family
from muneox.analysis.width_check import width_check as check
from muneox.commands import width_check
from muneox.runs import Smoothing
from tests.tools_mup import synthetic

STEPS = (1, *range(10, 401, 10))


def runs(final, noise=0.01, widths=(64, 128, 256), seeds=(1, 2, 3), draw=None, common=0.0, **options):
    """Curves that end at `final(width)`, with noise per run and `common` noise shared by all widths of a seed."""
    draw = np.random.default_rng(0) if draw is None else draw
    shared = {seed: common * draw.normal(size=len(STEPS)) for seed in seeds}
    return [
        synthetic.run(
            width,
            0.01,
            seed,
            steps=STEPS,
            values=synthetic.curve(final(width), STEPS) + shared[seed] + noise * draw.normal(size=len(STEPS)),
            iters=400,
            **options,
        )
        for width in widths
        for seed in seeds
    ]


def checked(made, **options):
    return check(family(made, "a width check"), "train/loss", **options)


def better(width):
    return 3 - 0.1 * math.log2(width / 64)


def test_wider_and_better_passes():
    result = checked(runs(better))
    assert result.passed and result.judged == "muP" and result.from_step == 21
    assert [(c.narrow, c.wide) for c in result.comparisons] == [(64, 128), (128, 256)]
    assert all(len(c.better) > 10 and c.paired for c in result.comparisons)


def test_a_width_that_becomes_worse_fails_and_is_named():
    made = runs(better)
    for run in made[6:]:  # width 256
        run.series["train/loss"].values[25:] += 0.3
    result = checked(made)
    assert not result.passed
    good, bad = result.comparisons
    assert good.passed and not bad.passed
    assert set(bad.worse) <= set(STEPS[25:]) and len(bad.worse) > 10
    assert "256 against 128: WORSE" in result.verdicts[1]


def test_equal_widths_rarely_fail():
    """A whole comparison has an error rate of 5 %, so at most a few of 60 families of equal widths fail."""
    draw = np.random.default_rng(1)
    failed = sum(not checked(runs(lambda width: 3.0, draw=draw, widths=(64, 128))).passed for _ in range(60))
    assert failed <= 8


def test_pairing_seeds_removes_noise_that_the_widths_share():
    made = runs(lambda width: 3 + 0.02 * math.log2(width / 64), noise=0.001, common=0.2)
    assert not checked(made).passed
    unpaired = [run for run in made if not (run.value("hidden_size") == 64 and run.value("seed") == 1)]
    result = checked(unpaired)
    assert not result.comparisons[0].paired and result.comparisons[0].passed


def test_one_seed_uses_noise_from_step_to_step():
    result = checked(runs(lambda width: 3.0, seeds=(1,)))
    assert result.passed and any("one seed" in text for text in result.warnings)
    worse = checked(runs(lambda width: 3 + 0.3 * math.log2(width / 64), seeds=(1,)))
    assert not worse.passed


def test_a_wider_run_that_diverges_is_worse():
    made = runs(better)
    made[-1].series["train/loss"].values[30:] = math.nan
    result = checked(made)
    assert not result.passed and "not finite" in result.verdicts[1]
    assert any("diverged" in text for text in result.warnings)


def test_sp_is_shown_but_muP_is_judged():
    made = [*runs(better), *runs(lambda width: 3 + 0.3 * math.log2(width / 64), use_mup=False)]
    result = checked(made)
    assert result.passed and [c.passed for c in result.comparisons] == [True, True, False, False]
    assert not checked(made[9:]).passed


def test_tolerance_smoothing_and_first_step():
    made = runs(lambda width: 3 + 0.05 * math.log2(width / 64))
    assert not checked(made).passed and checked(made, tolerance=0.1).passed
    assert checked(made, smoothing=Smoothing("mean", 5)).smoothing == "mean over 5 logged points"
    assert checked(made, from_step=350).comparisons[0].steps == [350, 360, 370, 380, 390, 400]
    with pytest.raises(DataError, match="has not logged .* at any step from 1000 on"):
        checked(made, from_step=1000)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(DataError, match="two or more widths; the runs have only 64"):
        checked(runs(better, widths=(64,)))
    folder = synthetic.write([synthetic.run(64, 0.1), synthetic.run(128, 0.2)], tmp_path / "runs")
    with pytest.raises(
        DataError, match="with the same `optimizer.params.lr`, which differs: 0.2 in mup-w128.*0.1 in mup-w64"
    ):
        width_check.main([str(folder), "--out", str(tmp_path / "o")])


def test_the_tool_writes_its_files_and_exits_with_the_result(tmp_path, capsys):
    folder = synthetic.write(runs(better), tmp_path / "good")
    out = tmp_path / "w"
    assert width_check.main([str(folder), "--out", str(out)]) == 0
    assert "muP: PASS, train/loss from step 21, not smoothed" in capsys.readouterr().out
    assert (tmp_path / "w.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "w.csv").open() as file:
        rows = list(csv.DictReader(file))
    stored = json.loads((tmp_path / "w.json").read_text())
    assert len(rows) == sum(len(c["steps"]) for c in stored["comparisons"])
    assert float(rows[0]["difference"]) == stored["comparisons"][0]["difference"][0]
    worse = synthetic.write(runs(lambda width: 3 + 0.3 * math.log2(width / 64)), tmp_path / "bad")
    assert width_check.main([str(worse), "--out", str(out)]) == 1
