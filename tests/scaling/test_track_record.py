"""The record of published forecasts next to a new one, and the badge of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import muneox.scaling
from muneox.report.forecast import section
from muneox.scaling.forecast import forecast_size, forecast_surface
from muneox.scaling.ladder import Point
from muneox.scaling.track_record import track_record

TABLE = json.loads((Path(muneox.scaling.__file__).parent / "track_record.json").read_text())


def test_the_record_has_every_law_and_distance_with_plausible_numbers():
    assert {f"{row} {factor}" for row in ("size", "compute", "surface, any run") for factor in (3, 10, 30, 100)} <= set(
        TABLE
    )
    for name, cell in TABLE.items():
        middle, far = cell["errors"]["predictor"]
        assert 0 < middle <= far and 0 <= cell["coverage"] <= 1 and cell["targets"] >= 1, name


@pytest.mark.parametrize(
    ("law", "extrapolation", "cell", "factor"),
    [
        ("size", 2.0, "size 3", "3"),
        ("size", 100.0, "size 10", "10"),  # few ladders reach farther
        ("compute", 25.0, "compute 30", "30"),
        ("isoflop", 4000.0, "compute 100", "100"),
        ("surface", 9.0, "surface, any run 10", "10"),
    ],
)
def test_the_sentence_states_the_cell_of_the_law_and_distance(law, extrapolation, cell, factor):
    known = TABLE[cell]
    middle, far = known["errors"]["predictor"]
    sentence = track_record(law, extrapolation)
    assert f"about {factor} times beyond" in sentence and f"{100 * middle:.1f}% in the median" in sentence
    assert f"{100 * far:.1f}% in one of ten" in sentence and f"{100 * known['coverage']:.0f}% of the 90 %" in sentence
    assert f"({known['targets']:.0f} targets)" in sentence


def test_other_laws_levels_and_targets_inside_the_data_have_no_record():
    assert track_record("annealing", 10.0) == track_record("size", 0.5) == track_record("size", 3.0, level=0.5) == ""


def ladder(count=8):
    x = np.geomspace(1e7, 1e9, count)
    return [Point(f"run {i}", float(v), float(2 + 40 * v**-0.2), "drawn") for i, v in enumerate(x)]


def test_the_forecast_and_the_report_state_the_record(tmp_path):
    found = forecast_size(ladder(), [1e10])
    path = tmp_path / "forecast.json"
    path.write_text(json.dumps(found.as_json()))
    assert found.track_record == track_record("size", 10.0)
    figure = section([path]).blocks[0]
    assert found.track_record[1:] in figure.caption


def badge(tmp_path, forecast):
    path = tmp_path / "forecast.json"
    path.write_text(json.dumps(forecast.as_json()))
    return section([path]).status


def test_the_badge_warns_where_the_backtest_misses_and_fails_where_the_target_does(tmp_path):
    points = ladder(12)
    assert badge(tmp_path, forecast_size(points, [1e10])) == "note"
    # The law changes in the middle of the ladder, so larger runs are outside the intervals of smaller ones.
    broken = [Point(p.name, p.x, p.y if p.x < 1e8 else p.y * (p.x / 1e8) ** -0.08, p.source) for p in points]
    assert badge(tmp_path, forecast_size(broken, [1e10])) == "warn"
    known = [*points, Point("target", 1e10, 2 + 40 * 1e10**-0.2, "drawn")]
    assert badge(tmp_path, forecast_size(known, [1e10], fit_below=2e9)) == "pass"
    far = [*points, Point("target", 1e10, 3.0, "drawn")]
    assert badge(tmp_path, forecast_size(far, [1e10], fit_below=2e9)) == "fail"


def test_a_surface_states_the_record_of_its_farthest_target():
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 2e9, 5), np.geomspace(1e9, 1e11, 5)))
    y = 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28
    points = [Point("run", *map(float, (a, c)), "drawn", float(b)) for a, b, c in zip(n, d, y)]
    found = forecast_surface(points, [(2e9, 1e11), (4e9, 4e12)], window=np.inf)
    assert found.track_record == track_record("surface", 80.0)
