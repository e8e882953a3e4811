"""Tests of `muneox predict-loss`: its inputs, its text, JSON and picture, and registered forecasts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from megatron.errors import ConfigError, DataError, UserError
from megatron.monitoring.jsonl import JsonlMonitor
from muneox.commands.predict_loss import main

ROOT = Path(__file__).resolve().parents[2]
SIZES = [8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
TARGET = 1024.0


def loss(x, seed=None):
    noise = 0 if seed is None else 0.001 * np.random.default_rng(seed).standard_normal()
    return (2 + 4 * x**-0.4) * (1 + noise)


@pytest.fixture
def table(tmp_path):
    rows = [f"w{x:g},{x},{loss(x, i)},a" for i, x in enumerate([*SIZES, TARGET])]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["name,params_M,loss,kind", *rows, "w8,8,9.9,b"]) + "\n")
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def metrics(folder, params, seed=0, corpus="a" * 64, **config):
    """Write a metrics.jsonl as a run does; its loss reaches that of its size at step 400."""
    monitor = JsonlMonitor(folder / "metrics.jsonl")
    header = {
        "config": {"lr": 0.01, "train_iters": 400, "seed": seed, **config},
        "model": {"params": params, "hidden_size": 64},
        "corpus": {"bytes": 1000, "sha256": corpus},
    }
    monitor.start(header | {"train_batch_size": 4, "seq_length": 32})
    for step in range(20, 401, 20):
        value = loss(params / 1e6, seed) + 3 * (step**-0.5 - 400**-0.5)
        monitor.log({"step": step, "tokens": step * 128, "valid/loss": value, "lr": 0.01 * (1 - step / 500)})
    monitor.close()
    return folder


@pytest.fixture
def runs(tmp_path):
    return [metrics(tmp_path / f"runs/w{i}", int(x * 1e6), seed=i) for i, x in enumerate(SIZES)]


TABLE = ("--x", "params_M", "--y", "loss", "--where", "kind=a")


def test_a_table_is_forecast_and_compared_with_held_out_runs(table, tmp_path, capsys):
    out, picture = tmp_path / "deep/forecast.json", tmp_path / "forecast.png"
    code = run(table, *TABLE, "--fit-below", 300, "--target", TARGET, 4096, "--json", out, "--plot", picture)
    assert code == 0
    content = json.loads(out.read_text())
    first, second = content["targets"]
    assert first["actual"] == pytest.approx(loss(TARGET, 6)) and first["inside"]
    assert first["low"] < first["prediction"] < first["high"] and first["level"] == 0.9
    assert first["extrapolation"] == 4 and second["extrapolation"] == 16 and "actual" not in second
    assert set(content["parameters"]) == {"a", "b", "c"}
    assert content["parameters"]["b"]["low"] < -0.4 < content["parameters"]["b"]["high"]
    assert len(content["points"]["used"]) == 6 and len(content["points"]["left_out"]) == 1
    assert content["backtest"]["held_out"] and content["backtest"]["mean_absolute_relative_error"] < 0.02
    assert any("16 times beyond" in text for text in content["warnings"])
    shown = capsys.readouterr().out
    for text in (f"{first['prediction']:.4f}", "4.0 x", "backtest: mean error", "inside", "prior:"):
        assert text in shown
    pixels = imread(picture)
    assert pixels.shape[0] > 1000 and pixels.std() > 0.05
    [band] = content["bands"]
    assert band["x"][0] == SIZES[0] and band["x"][-1] == pytest.approx(4096) and band["level"] == 0.9
    for target in content["targets"]:
        for key, line in (("prediction", "median"), ("low", "low"), ("high", "high")):
            along = np.interp(np.log(target["x"]), np.log(band["x"]), band[line])
            assert along == pytest.approx(target[key], rel=2e-3)
    assert np.interp(np.log(SIZES), np.log(band["x"]), band["median"]) == pytest.approx(
        [p["y"] for p in content["points"]["used"]], rel=4e-3
    )


def test_runs_are_forecast_at_their_end_and_at_a_step(runs, tmp_path):
    out = tmp_path / "f.json"
    assert run(*runs, "--y", "valid/loss", "--target", TARGET * 1e6, "--json", out) == 0
    end = json.loads(out.read_text())["targets"][0]
    assert end["prediction"] == pytest.approx(loss(TARGET), rel=0.01)
    assert run(*runs, "--y", "valid/loss", "--target", TARGET * 1e6, "--at-step", 200, "--json", out) == 0
    early = json.loads(out.read_text())["targets"][0]
    assert early["prediction"] == pytest.approx(loss(TARGET) + 3 * (200**-0.5 - 400**-0.5), rel=0.01)
    assert run(*runs, "--y", "valid/loss", "--target", TARGET * 1e6, "--at-tokens", 200 * 128, "--json", out) == 0
    assert json.loads(out.read_text())["targets"][0]["prediction"] == pytest.approx(early["prediction"])


def test_a_forecast_is_registered_once_and_checked(runs, tmp_path, capsys):
    saved = tmp_path / "registered.json"
    ask = (*runs, "--y", "valid/loss", "--target", TARGET * 1e6)
    assert run(*ask, "--save", saved) == 0
    content = json.loads(saved.read_text())
    printed = capsys.readouterr().out
    [found] = content["targets"]
    interval = f"90% interval {found['low']:.3f} to {found['high']:.3f}"
    assert printed.startswith(
        f"1.024B parameters: {found['prediction']:.3f}, {interval}, 4.0 times the largest run; registered in {saved}\n"
    )
    assert "actual" not in printed.split("runs used")[0], "columns without a value are left out"
    assert len(content["registered"]["inputs"]) == 6
    assert all(len(entry["sha256"]) == 64 for entry in content["registered"]["inputs"])
    with pytest.raises(ConfigError, match="not overwritten"):
        run(*ask, "--save", saved)
    target = metrics(tmp_path / "target", int(TARGET * 1e6), seed=9)
    outcome = tmp_path / "outcome.json"
    assert run("--check", saved, target, "--json", outcome) == 0
    assert "inside" in capsys.readouterr().out
    [checked] = json.loads(outcome.read_text())["targets"]
    assert checked["inside"]
    assert checked["relative_error"] == pytest.approx(checked["prediction"] / checked["actual"] - 1)
    worse = metrics(tmp_path / "worse", int(TARGET * 1e6), seed=9, note="x")
    text = (worse / "metrics.jsonl").read_text().splitlines()
    last = json.loads(text[-1]) | {"valid/loss": 3.0}
    (worse / "metrics.jsonl").write_text("\n".join([*text[:-1], json.dumps(last)]) + "\n")
    assert run("--check", saved, worse) == 1
    assert "OUTSIDE" in capsys.readouterr().out
    with pytest.raises(DataError, match="the runs given have"):
        run("--check", saved, runs[0])
    elsewhere = metrics(tmp_path / "elsewhere", int(TARGET * 1e6), seed=9, corpus="b" * 64)
    with pytest.raises(DataError, match=r"SHA-256 a{12}\.\.\., and elsewhere was trained on .* SHA-256 b{12}"):
        run("--check", saved, elsewhere)
    content["targets"][0]["high"] = 9.0
    saved.write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed after"):
        run("--check", saved, target)


def test_perplexities_are_fitted_as_losses(tmp_path):
    path, out = tmp_path / "eval.csv", tmp_path / "f.json"
    path.write_text("params,ppl\n" + "\n".join(f"{x},{np.exp(loss(x))}" for x in SIZES) + "\n")
    assert run(path, "--y", "ppl", "--perplexity", "--target", TARGET, "--json", out) == 0
    target = json.loads(out.read_text())["targets"][0]
    assert target["prediction"] == pytest.approx(loss(TARGET), rel=0.005)
    assert target["perplexity"]["prediction"] == pytest.approx(np.exp(target["prediction"]))


def test_lm_eval_results_are_read(tmp_path, capsys):
    for i, x in enumerate(SIZES):
        content = {
            "results": {"wikitext": {"word_perplexity,none": float(np.exp(loss(x))), "alias": "wikitext"}},
            "config": {"model_num_parameters": int(x * 1e6)},
            "model_name": f"m{i}",
        }
        (tmp_path / f"results_{i}.json").write_text(json.dumps(content))
    files, out = sorted(tmp_path.glob("results_*.json")), tmp_path / "f.json"
    arguments = ("--perplexity", "--target", TARGET * 1e6, "--json", out)
    assert run(*files, "--y", "wikitext/word_perplexity", *arguments) == 0
    [target] = json.loads(out.read_text())["targets"]
    assert target["prediction"] == pytest.approx(loss(TARGET), rel=0.005)
    perplexities = [f"{np.exp(target[key]):.4g}" for key in ("prediction", "low", "high")]
    printed = capsys.readouterr().out
    assert "{} ({} to {})".format(*perplexities) in printed and "the logarithm of wikitext/word_perplexity" in printed
    with pytest.raises(DataError, match="did you mean wikitext/word_perplexity"):
        run(*files, "--y", "word_perplexity", *arguments)


def test_a_surface_is_forecast_with_the_optimum_of_a_budget(tmp_path):
    rows = [
        (n, d, 1.7 + 400 * n**-0.34 + 410 * d**-0.28) for n in (1e8, 3e8, 1e9, 3e9) for d in (3e9, 1e10, 3e10, 1e11)
    ]
    path, out, picture = tmp_path / "grid.csv", tmp_path / "f.json", tmp_path / "f.png"
    path.write_text("params,tokens,loss\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    ask = (path, "--law", "surface", "--y", "loss", "--json", out)
    assert run(*ask, "--target", "1e10:1e12", "--budget", 1e23, "--fit-below", 2e9, "--plot", picture) == 0
    content = json.loads(out.read_text())
    assert content["targets"][0]["prediction"] == pytest.approx(1.7 + 400 * 1e10**-0.34 + 410 * 1e12**-0.28, rel=0.01)
    assert content["compute_optimal"][0]["params"]["value"] == pytest.approx(1.2e10, rel=0.5)
    with pytest.raises(ConfigError, match="7e9:1.4e11"):
        run(*ask, "--target", "1e10")
    [band] = content["bands"]
    assert band["name"] == "1T tokens" and band["median"][-1] == pytest.approx(
        content["targets"][0]["prediction"], rel=1e-3
    )
    assert imread(picture).std() > 0.05


COMPUTE = [(10.0**c, 1.6 + 30 * (10.0**c) ** -0.07) for c in np.arange(17, 21, 0.5)]  # FLOPs, loss


@pytest.mark.parametrize("columns", ["flops", "params,tokens"])
def test_compute_reads_flops_or_six_n_d_from_a_table(tmp_path, columns):
    rows = [(c, y) if columns == "flops" else (c**0.5, c**0.5 / 6, y) for c, y in COMPUTE]
    path, out = tmp_path / "table.csv", tmp_path / "f.json"
    path.write_text(f"{columns},loss\n" + "\n".join(",".join(map(repr, map(float, row))) for row in rows) + "\n")
    assert run(path, "--law", "compute", "--y", "loss", "--target", 1e22, "--json", out) == 0
    [target] = json.loads(out.read_text())["targets"]
    assert target["prediction"] == pytest.approx(1.6 + 30 * 1e22**-0.07, rel=0.02)


@pytest.mark.parametrize(
    ("columns", "x"), [("params", "params"), ("width,flops_left", "width"), ("params,tokens", "tokens")]
)
def test_compute_does_not_take_another_column_for_flops(tmp_path, columns, x):
    count = columns.count(",") + 1
    path = tmp_path / "table.csv"
    rows = [",".join([f"{c:g}"] * count) + f",{y}" for c, y in COMPUTE]
    path.write_text(f"{columns},loss\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=f"needs FLOPs, and `{x}` is no column of FLOPs: add a column `flops`"):
        run(path, "--law", "compute", "--y", "loss", "--x", x, "--target", 1e22)


def test_tokens_that_are_neither_equal_nor_in_proportion_are_reported(tmp_path, capsys):
    def printed(tokens):
        path = tmp_path / "table.csv"
        path.write_text("params,tokens,loss\n" + "".join(f"{x},{tokens(x)},{loss(x)}\n" for x in SIZES))
        assert run(path, "--y", "loss", "--target", TARGET) == 0
        return capsys.readouterr().out

    assert "neither equal nor in proportion" not in printed(lambda x: 1e9) + printed(lambda x: 20 * x)
    assert "trained on 64 to 6.55e+04 tokens, neither equal nor in proportion to `params`" in printed(lambda x: x**2)


def test_a_law_of_the_size_needs_no_tokens(tmp_path, capsys):
    path = tmp_path / "table.csv"
    cells = ["", "unknown", *("20" for _ in SIZES[2:])]
    path.write_text("params,tokens,loss\n" + "".join(f"{x},{d},{loss(x)}\n" for x, d in zip(SIZES, cells)))
    assert run(path, "--y", "loss", "--target", TARGET) == 0
    assert "neither equal nor in proportion" not in capsys.readouterr().out


def test_a_row_that_is_repeated_in_every_cell_counts_once(table, tmp_path, capsys):
    out = tmp_path / "f.json"
    table.write_text(table.read_text() + "w8,8.0,9.9,b\nw8,8,9.9,b\nw8,8,9.9,b\n")
    assert run(table, "--x", "params_M", "--y", "loss", "--where", "kind=a", "--target", 2048, "--json", out) == 0
    assert "2 rows repeat another one in every cell and count once" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["points"]["used"]) == 7


def test_a_budget_needs_the_surface_and_a_surface_needs_tokens_that_differ(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("params,tokens,loss\n" + "".join(f"{x},1e9,{loss(x)}\n" for x in SIZES))
    with pytest.raises(ConfigError, match="--budget .* needs --law surface or isoflop, got size"):
        run(path, "--y", "loss", "--budget", 1e20)
    with pytest.raises(DataError, match=r"all runs have the tokens 1e\+09; L\(N, D\) needs runs that differ in it"):
        run(path, "--law", "surface", "--y", "loss", "--target", "1e9:1e9")


def test_compute_takes_the_best_run_of_each_budget(runs, tmp_path):
    out = tmp_path / "f.json"
    assert run(*runs, "--law", "compute", "--y", "valid/loss", "--target", 1e16, "--json", out) == 0
    content = json.loads(out.read_text())
    assert content["x"] == "flops" and content["targets"][0]["prediction"] > 0
    values = [point["y"] for point in content["points"]["used"]]
    assert values == sorted(values, reverse=True)


def test_the_end_of_a_run_is_forecast_from_its_beginning(tmp_path):
    steps = np.arange(20, 2001, 20)
    rate = 0.5 + 0.5 * np.cos(np.pi * steps / 2000)
    area = np.cumsum(rate) * 20
    value = 2 + 20 * area**-0.5
    path, out, picture = tmp_path / "run.csv", tmp_path / "f.json", tmp_path / "f.png"
    path.write_text("step,lr,loss\n" + "\n".join(f"{s},{r},{v}" for s, r, v in zip(steps, rate, value)) + "\n")
    assert run(path, "--law", "annealing", "--y", "loss", "--until", 1200, "--json", out, "--plot", picture) == 0
    assert imread(picture).std() > 0.05
    target = json.loads(out.read_text())["targets"][0]
    assert target["x"] == 2000 and target["inside"] and abs(target["relative_error"]) < 0.01
    [band] = json.loads(out.read_text())["bands"]
    assert band["x"][-1] == 2000 and band["median"][-1] == pytest.approx(target["prediction"], rel=1e-4)
    assert all(low < high for low, high in zip(band["low"], band["high"]))
    with pytest.raises(ConfigError, match="--until"):
        run(path, "--law", "annealing", "--y", "loss", "--target", 2000)


def test_the_next_run_is_planned(table, capsys, tmp_path):
    out = tmp_path / "f.json"
    assert (
        run(table, *TABLE, "--fit-below", 300, "--target", TARGET, "--plan", "--cost-exponent", 2, "--json", out) == 0
    )
    assert "most informative for the money" in capsys.readouterr().out
    plan = json.loads(out.read_text())["plan"]
    assert plan["best"]["shrink"] > 0 and len(plan["candidates"]) == 7
    assert all(one["cost"] == pytest.approx((one["x"] / TARGET) ** 2) for one in plan["candidates"])


def test_a_diverged_run_is_left_out_on_request_and_an_outlier_is_reported(tmp_path, capsys):
    path = tmp_path / "t.csv"
    rows = [f"r{i},{x},{loss(x, i)}" for i, x in enumerate(np.geomspace(8, 400, 9))]
    path.write_text("\n".join(["name,params,loss", *rows, "bad,70,nan", "worse,90,6.5"]) + "\n")
    ask = (path, "--y", "loss", "--target", 2000)
    with pytest.raises(DataError, match="bad.*--drop-diverged"):
        run(*ask)
    out = tmp_path / "f.json"
    assert run(*ask, "--drop-diverged", "--drop-flagged", "--json", out) == 0
    content = json.loads(out.read_text())
    assert {point["name"]: point["reason"] for point in content["points"]["left_out"]} == {
        "bad": "loss not finite", "worse": "outlier",
    }  # fmt: skip
    assert "worse seems to have diverged" in capsys.readouterr().out
    assert content["targets"][0]["prediction"] == pytest.approx(loss(2000), rel=0.01)


def test_each_error_names_its_cause_and_the_way_out(table, runs, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("params,loss\n1,3\n2,2.8\n4,2.7\n")
    other = metrics(tmp_path / "runs/other", int(5e8), lr=0.02)
    cases = [
        ((table, "--x", "param_M", "--y", "loss", "--target", 9e3), DataError, ["param_M", "params_M"]),
        ((table, "--x", "params_M", "--y", "los", "--target", 9e3), DataError, ["`los`", "loss"]),
        ((table, *TABLE[:4], "--where", "kin=a", "--target", 9e3), DataError, ["kin", "kind"]),
        ((table, *TABLE, "--target", 50), ConfigError, ["target 50", "inside the data", "--fit-below"]),
        ((table, *TABLE, "--target", "big"), ConfigError, ["big"]),
        ((table, *TABLE, "--target", -4), ConfigError, ["positive"]),
        ((table, "--x", "params_M", "--target", 9e3), ConfigError, ["--y"]),
        ((table, *TABLE, "--target", 9e3, "--level", 90), ConfigError, ["--level"]),
        ((few, "--y", "loss", "--target", 9), DataError, ["3 different sizes", "at least 4"]),
        ((*runs, "--y", "valid/los", "--target", 9e9), DataError, ["valid/los", "valid/loss"]),
        ((*runs, "--x", "parms", "--y", "valid/loss", "--target", 9e9), DataError, ["parms", "params"]),
        ((*runs, other, "--y", "valid/loss", "--target", 9e9), DataError, ["`lr`", "0.02", "other"]),
        ((*runs, "--y", "valid/loss", "--target", 9e9, "--at-step", 90), DataError, ["step 90"]),
        ((tmp_path / "nowhere", "--y", "loss", "--target", 9), DataError, ["nowhere"]),
        (("--y", "loss", "--target", 9), ConfigError, ["no runs"]),
        (("--check", table, table), DataError, ["is not a registered forecast"]),
    ]
    for arguments, kind, words in cases:
        with pytest.raises(kind) as error:
            run(*arguments)
        assert all(word in str(error.value) for word in words), (arguments, str(error.value))
    assert run(*runs, other, "--y", "valid/loss", "--target", 9e9, "--allow", "lr") == 0


def test_runs_on_different_corpora_are_not_compared(runs, tmp_path):
    ask = ("--y", "valid/loss", "--target", TARGET * 1e9)
    other = metrics(tmp_path / "other", int(TARGET * 1e6), corpus="b" * 64)
    with pytest.raises(DataError, match=r"a ladder needs runs on one corpus.* a{12}.* in w0, .* b{12}.* in other"):
        run(*runs, other, *ask)
    assert run(*runs, other, *ask, "--allow", "corpus") == 0
    with pytest.raises(DataError, match="a forecast of curves needs runs on one corpus"):
        run(runs[0], other, "--y", "valid/loss", "--law", "annealing", "--target", 800)


def test_runs_of_different_lengths_are_not_compared(runs, tmp_path):
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines()
    (runs[0] / "metrics.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(UserError, match="--at-step 340"):
        run(*runs, "--y", "valid/loss", "--target", 9e9)


@pytest.mark.parametrize("follows", ["params", "params_ne"])
def test_the_count_of_parameters_that_the_ladder_follows_is_proposed(tmp_path, capsys, follows):
    """A law in one count; the embeddings are most of the smallest models and little of the largest."""
    rows = []
    for width in (256, 384, 512, 768, 1024, 1536, 2048, 3072):
        without = 12 * 12 * width**2
        sizes = {"params": without + 50304 * width, "params_ne": without}
        rows.append((sizes["params"], sizes["params_ne"], 1.8 + 90 * sizes[follows] ** -0.25))
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["params,params_ne,loss", *(",".join(map(str, row)) for row in rows)]) + "\n")
    other = {"params": "params_ne", "params_ne": "params"}[follows]
    for column, proposed in ((other, True), (follows, False)):
        assert run(path, "--x", column, "--y", "loss", "--target", 7e9) == 0
        assert (
            f"use --x {follows}, with the target's size counted the same way" in capsys.readouterr().out
        ) == proposed


@pytest.mark.parametrize("content", [{}, {"results": 3}, {"results": {}, "config": [[1.5, 2]]}, {"results": {"a": 1}}])
def test_a_json_file_without_results_of_an_evaluation_is_an_error(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"results.json is not a results file of lm-evaluation-harness"):
        run(path, "--y", "lambada/ppl", "--target", 9e9)


def test_a_crashed_run_is_offered_for_leaving_out(runs, tmp_path):
    path = runs[0] / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    os.utime(path, (0, 0))  # not ended, and not written to for long
    ask = ("--y", "valid/loss", "--target", 9e9)
    with pytest.raises(UserError, match=r"w0 at 340.*w0 crashed or stopped early: .*--exclude w0, or .*--at-step 340"):
        run(*runs, *ask)
    assert run(*runs, *ask, "--exclude", "w0") == 0


def test_an_excluded_run_that_does_not_exist_is_an_error(runs, table):
    with pytest.raises(DataError, match="has no run `w77`; it has w0, w1"):
        run(*runs, "--y", "valid/loss", "--target", 9e9, "--exclude", "w77")
    with pytest.raises(DataError, match="has no run `w77`"):
        run(table, *TABLE, "--target", 9e9, "--exclude", "w77")


def test_the_command_needs_no_torch_and_exits_1_on_bad_data(tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("params,loss\n1,3\n2,2.8\n4,2.7\n")
    code = (
        "import sys; from megatron.entry import run_script; import muneox.scaling.picture;"
        "from muneox.commands.predict_loss import main; code = run_script(main);"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    command = [sys.executable, "-c", code, str(few), "--y", "loss", "--target", "9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
