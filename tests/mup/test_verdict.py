"""The verdict: slopes, intervals, thresholds and invalid data, on synthetic records."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mup.coord_check import plot_verdict, verdict
from mup.slopes import Thresholds

WIDTHS = (64, 128, 256, 512)


def records(
    slopes: dict[str, float],
    noise: float = 0.0,
    seeds: int = 3,
    statistic: str = "rms_delta",
    t: int = 4,
    **extra: Any,
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"module": module, "width": w, "seed": seed, "t": t, "statistic": statistic, **extra}
        | {"value": w**slope * float(np.exp(noise * rng.normal()))}
        for module, slope in slopes.items()
        for w in WIDTHS
        for seed in range(seeds)
    ]


@settings(deadline=None)
@given(st.floats(-2, 2))
def test_a_power_law_is_fitted_exactly_and_judged_by_the_thresholds(slope: float) -> None:
    [row] = verdict(records({"a": slope})).rows
    assert (row.slope, row.low, row.high) == pytest.approx((slope, slope, slope), abs=1e-9)
    if abs(slope - 0.15) > 1e-6 and abs(slope + 0.30) > 1e-6:
        assert row.ok == (-0.30 < slope < 0.15)


def test_ols_and_interval_agree_with_numpy() -> None:
    data = records({"a": 0.1}, noise=0.3, seeds=5)
    [row] = verdict(data).rows
    x, y = [math.log2(r["width"]) for r in data], [math.log2(r["value"]) for r in data]
    assert row.slope == pytest.approx(np.polyfit(x, y, 1)[0])
    per_seed = [np.polyfit(x[s::5], y[s::5], 1)[0] for s in range(5)]
    means = np.mean(np.random.default_rng(1).choice(per_seed, (20000, 5)), axis=1)
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    assert verdict(data) == verdict(data)


def test_a_slope_with_a_missing_width_agrees_with_numpy() -> None:
    data = [r for r in records({"a": 0.1}, noise=0.3) if (r["seed"], r["width"]) != (1, 512)]
    [row] = verdict(data).rows
    x, y = [math.log2(r["width"]) for r in data], [math.log2(r["value"]) for r in data]
    assert row.slope == pytest.approx(np.polyfit(x, y, 1)[0])
    fits = []
    for drawn in itertools.product(range(3), repeat=3):  # every way to draw three seeds with replacement
        points = [(a, b) for s in drawn for r, a, b in zip(data, x, y, strict=True) if r["seed"] == s]
        fits.append(np.polyfit([a for a, _ in points], [b for _, b in points], 1)[0])
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(np.repeat(fits, 100), [0.025, 0.975])), abs=0.01)


def test_an_uncertain_slope_does_not_fail() -> None:
    data = [
        {"module": "a", "width": w, "seed": s, "t": 1, "statistic": "rms_delta", "value": w ** (0.25 * s)}
        for w in WIDTHS
        for s in (0, 1, 2)
    ]
    [row] = verdict(data).rows
    assert row.slope == pytest.approx(0.25) and row.low < 0.05 and row.ok
    assert not verdict(data, thresholds=Thresholds(max_low=-1)).passed


@pytest.mark.parametrize(
    ("module", "ok"),
    [
        ("blocks.0.attn.logits", True),
        ("attention_scores", True),
        ("layers.3.attention.scores", True),
        ("readout", False),
        ("blocks.0.attn", False),
    ],
)
def test_attention_logits_can_vanish_by_name(module: str, ok: bool) -> None:
    assert verdict(records({module: -0.5})).passed == ok
    assert not verdict(records({module: 0.5})).passed
    assert verdict(records({module: -0.5}), may_vanish=lambda *row: True).passed


def test_only_marked_records_of_a_module_can_vanish() -> None:
    at_init = records({"head": -0.5}, statistic="mean_abs", t=0, may_vanish=True)
    assert verdict(at_init + records({"head": 0.0}, may_vanish=False)).passed
    assert not verdict(at_init + records({"head": -0.5}, may_vanish=False)).passed
    assert not verdict(records({"head": 0.5}, statistic="mean_abs", t=0, may_vanish=True)).passed


def test_powerless() -> None:
    good, bad = records({"a": 0.0}), records({"a": 1.0})
    assert verdict(good, reference=bad).passed and verdict(good, reference=bad).powerless is False
    result = verdict(good, reference=good)
    assert not result.passed and result.powerless and "powerless" in result.table()
    assert verdict(good).powerless is None


def test_zeros() -> None:
    def zeroed(where: Any) -> list[dict[str, Any]]:
        return [
            r | {"value": 0.0 if r["module"] == "a" and where(r) else r["value"]} for r in records({"a": 0, "b": 0})
        ]

    assert [row.module for row in verdict(zeroed(lambda r: True)).rows] == ["b"]
    result = verdict(zeroed(lambda r: r["width"] == 128))
    assert not result.passed and "zero only at 128" in result.table()
    assert not verdict(zeroed(lambda r: r["width"] == 128 and r["seed"] == 1)).passed
    with pytest.raises(ValueError, match="nothing to judge"):
        verdict([r | {"value": 0.0} for r in records({"a": 0})])


def test_nan_and_missing_widths_fail() -> None:
    data = records({"a": 0.0, "b": 0.0, "c": 0.0})
    for r in data:
        if (r["module"], r["width"]) == ("a", 512):
            r["value"] = math.nan
    result = verdict([r for r in data if (r["module"], r["width"]) != ("b", 256)])
    assert {row.module: row.reason for row in result.failures} == {
        "a": "not finite at 512",
        "b": "not recorded at 256",
    }
    assert "3 slopes" in result.summary() and result.table(only_failures=True).count("\n") == 3


def test_calls_of_one_module_are_averaged_and_columns_are_accepted() -> None:
    data = records({"a": 0.0})
    columns = {key: [r[key] for r in data + data] for key in data[0]}
    assert verdict(columns).rows == verdict(data).rows
    import pandas as pd

    assert verdict(pd.DataFrame(data)).rows == verdict(data).rows


def test_too_little_data_is_refused() -> None:
    data = records({"a": 0.0})
    with pytest.raises(ValueError, match="4 or more widths, got 3"):
        verdict([r for r in data if r["width"] != 64])
    with pytest.raises(ValueError, match="8x range"):
        verdict([r | {"width": 500 + r["width"]} for r in data])
    with pytest.raises(ValueError, match="3 or more seeds, got 2"):
        verdict([r for r in data if r["seed"]])
    with pytest.raises(ValueError, match="has no column 'seed'"):
        verdict([{k: v for k, v in r.items() if k != "seed"} for r in data])
    assert verdict([r for r in data if r["seed"]], thresholds=Thresholds(min_seeds=1)).seeds == 2


def test_another_axis_and_plain_data() -> None:
    data = [{("layers" if k == "width" else k): v for k, v in r.items()} for r in records({"a": 1.0})]
    result = verdict(data, axis="layers")
    assert not result.passed and "layers 64" in result.summary()
    assert json.loads(json.dumps(result.as_dict()))["rows"][0]["reason"] == "grows as the power +1.00"


def test_the_plot_marks_failing_modules(tmp_path: Path) -> None:
    data = records({"fine": 0.0, "broken": 1.0}) + records({"fine": 0.0}, statistic="mean_abs", t=0)
    data.append(data[0] | {"value": math.nan})
    result = verdict([r for r in data if math.isfinite(r["value"])])
    figure = plot_verdict(data, result, tmp_path / "check.jpg", "muP")
    assert (tmp_path / "check.jpg").stat().st_size > 1000 and len(figure.axes) == 2
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {"fine", "FAIL broken +1.00"}
    assert lines["FAIL broken +1.00"].get_color() == "red" != lines["fine"].get_color()
    assert "FAIL" in figure.get_suptitle() and figure.axes[0].get_xscale() == "log"
    widths = [record["width"] for record in data]
    low, high = figure.axes[1].get_ylim()  # the flat line alone
    assert high / low == pytest.approx(max(widths) / min(widths)) and low < 1.0 < high
    low, high = figure.axes[0].get_ylim()
    assert high / low > 1.01 * max(widths) / min(widths)


def test_power_is_a_change_that_fails_in_the_reference() -> None:
    """A reference that differs only before the first step says nothing about training."""
    start = records({"a": 0.5}, statistic="mean_abs", t=0)
    assert verdict(records({"a": 0.0}), reference=start + records({"a": 0.0})).powerless is True
    assert verdict(records({"a": 0.0}), reference=start + records({"a": 0.5})).powerless is False
    still = [{**record, "value": 0.0} for record in records({"a": 0.0})]
    with pytest.raises(ValueError, match="no evidence: no activation changed"):
        verdict(records({"a": 0.0}, statistic="mean_abs", t=0) + still)


def test_kinds_that_shrink_can_vanish_at_every_step() -> None:
    assert verdict(records({"readout": -0.5}, may_vanish=True)).passed
    assert not verdict(records({"readout": 0.5}, may_vanish=True)).passed
