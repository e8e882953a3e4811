"""The whole search on a tiny proxy: warm workers, interruption, databases for several hosts, overrides."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from megatron.monitoring import read_metrics
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import cost_config
from muneox.cost import cost_of
from muneox.search.lead import is_over
from muneox.search.progress import Usage, eta, status_line
from muneox.search.setup import Setup, parse
from muneox.search.stages import Stage, ranked, search_stage
from muneox.search.storage import open_storage
from muneox.search.worker import run_worker
from tests.search.tiny import ROOT, environment, run_search, search_command, write_space

SPACE = """
parameters:
  lr: {low: 1.0e-3, high: 1.0e-1, log: true}
  mup-output-temp: {low: 0.25, high: 4.0, log: true}
"""


def work(proxy: Path, tmp_path: Path, space: str, *options: str) -> tuple[Setup, Stage]:
    """Run a search in this process."""
    file = write_space(tmp_path, space)
    setup = parse([str(proxy), "--space", str(file), "--out", str(tmp_path / "out"), *options])
    run_worker(setup, time.monotonic())
    return setup, search_stage(setup)


def losses(study: optuna.Study) -> list[tuple[int, dict, float | None]]:
    return [(trial.number, trial.params, trial.value) for trial in study.get_trials()]


def open_finished(where: Path | str, name: str = "search") -> optuna.Study:
    storage, _ = open_storage(str(where))
    return optuna.load_study(study_name=name, storage=storage)


def test_a_worker_trains_every_width_and_seed_and_confirms_the_best(proxy: Path, tmp_path: Path) -> None:
    space = SPACE + "widths: [16, 32]\nseeds: [1, 2]\nsampler: qmc\n"
    setup, stage = work(proxy, tmp_path, space, "--trials", "2", "--confirm", "1", "--confirm-top", "1")
    trials = stage.study.get_trials()
    assert is_over(stage) and [trial.number for trial in trials] == [0, 1]
    for trial in trials:
        runs = trial.user_attrs["runs"]
        assert list(runs) == ["w16-s1", "w16-s2", "w32-s1", "w32-s2"]
        assert trial.value == pytest.approx(sum(run["loss"] for run in runs.values()) / 4)
        for name, run in runs.items():
            header, records = read_metrics(Path(run["log_dir"]) / "metrics.jsonl")
            assert header["config"]["lr"] == trial.params["lr"]
            assert header["model"]["hidden_size"] == int(name[1:3])
            assert records[-1]["valid/loss"] == run["loss"]
            assert header["model"]["flops_per_token"] * records[-1]["tokens"] == run["flops"]
    spent = Usage.of(trials)
    assert spent.tokens == 2 * 4 * 6 * 4 * 16 and spent.flops > 0
    assert eta(trials[:1], 2) is None and "2/2 trials" in status_line(trials, 2, None)
    [confirmed] = open_finished(setup.study, f"search-confirm-{ranked(trials)[0].number}-1").get_trials()
    assert confirmed.params == ranked(trials)[0].params
    assert list(confirmed.user_attrs["runs"]) == ["w16-s3", "w32-s3"]
    [figures] = [value for key, value in stage.study.user_attrs.items() if key.startswith("worker:")]
    assert figures["runs"] == 10 and 0 < figures["steps"] + figures["evaluation"] < figures["wall"]


def test_a_diverged_trial_is_recorded_and_the_search_continues(proxy: Path, tmp_path: Path) -> None:
    space = "sampler: grid\nparameters: {mup-embedding-mult: [1.0, 1.0e+38], lr: [0.001, 0.01]}"
    _, stage = work(proxy, tmp_path, space)
    trials = stage.study.get_trials()
    assert [trial.value is not None and math.isinf(trial.value) for trial in trials] == [False, False, True, True]
    assert all("loss is" in trial.user_attrs["diverged"] for trial in trials[2:])
    assert ranked(trials)[0].number in (0, 1) and "2 diverged" in status_line(trials, 4, None)


@pytest.mark.slow
def test_pruned_trials_stop_early_and_do_not_win(proxy: Path, tmp_path: Path) -> None:
    space = "pruner: median\nsampler: grid\nparameters: {lr: [0.01, 0.011, 0.012, 0.013, 0.014, 3.0, 5.0]}"
    _, stage = work(proxy, tmp_path, space, "--train-iters", "18", "--eval-interval", "2")
    trials = stage.study.get_trials()
    pruned = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert pruned and all(trial.user_attrs["runs"]["w16-s1234"]["tokens"] < 18 * 4 * 16 for trial in pruned)
    assert ranked(trials)[0].params["lr"] < 1.0


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.slow
def test_the_command_line_searches_reports_and_prints_the_command_to_use(proxy: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.yml"
    values = {**json.loads(proxy.read_text()), "hidden-size": 64, "num-attention-heads": 8}
    target.write_text(json.dumps({key: value for key, value in values.items() if key not in ("min-lr", "optimizer")}))
    out, space = tmp_path / "out", write_space(tmp_path, SPACE)
    command = (proxy, "--space", space, "--out", out, "--trials", "4", "--workers", "2", "--target", target)
    done = run_search(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "4/4 trials" in done.stdout and "of the target's" in done.stdout and "neighbour" in done.stdout
    best = yaml.safe_load((out / "best.yml").read_text())
    study = open_finished(out / "study.db")
    assert best["lr"] == study.best_trial.params["lr"] and best["min-lr"] == pytest.approx(best["lr"] / 10)
    assert f"use it: python deepy.py train.py {target} {out / 'best.yml'}" in done.stdout
    merged = NeoXArgs.from_ymls([target, out / "best.yml"], world_size=1)
    assert merged.mup_output_temp == study.best_trial.params["mup_output_temp"]
    share = sum(run["flops"] for trial in study.trials for run in trial.user_attrs["runs"].values())
    assert f"{share / cost_of(cost_config(merged)).flops:.2%} of the target's" in done.stdout
    again = run_search(*command)
    assert again.returncode == 0 and "trials, " not in again.stdout  # all trials are finished
    other = run_search(*command, "--train-iters", "7")
    assert other.returncode == 1 and "configuration.train_iters is 6 there and 7 here" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
    wide = run_search(*command, "--hidden-size", "64", "--num-attention-heads", "8")
    assert wide.returncode == 2 and "is as large as its target" in wide.stderr


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.slow
@pytest.mark.parametrize("store", ["study.db", "study.journal"])
def test_kill_9_of_all_processes_changes_no_trial(proxy: Path, tmp_path: Path, store: str) -> None:
    """Kill leader and workers at ten random moments. The study must equal that of an undisturbed search."""
    space, dice = write_space(tmp_path, SPACE), random.Random(store)
    common: tuple[object, ...] = (proxy, "--space", space, "--trials", "30", "--workers", "2")
    common += ("--train-iters", "150", "--eval-interval", "150", "--log-interval", "10")
    disturbed = (*common, "--out", tmp_path / "killed", "--study", tmp_path / store)
    kills = 0

    def activity() -> set[tuple[str, int]]:
        logs = (tmp_path / "killed").glob("search/*/*/metrics.jsonl")
        return {(str(path), path.stat().st_mtime_ns) for path in logs if path.exists()}

    while kills < 10:
        before = activity()
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(search_command(*disturbed), env=environment(), start_new_session=True, **quiet)
        while activity() == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1.5 * dice.random())
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    last = run_search(*disturbed)
    assert last.returncode == 0, last.stderr
    undisturbed = run_search(*common, "--out", tmp_path / "calm", "--study", tmp_path / "calm.db")
    assert undisturbed.returncode == 0, undisturbed.stderr
    study = open_finished(tmp_path / store)
    assert losses(study) == losses(open_finished(tmp_path / "calm.db"))
    taken_up = sum(trial.user_attrs.get("taken_up", 0) for trial in study.get_trials())
    print(f"{kills} kills, {taken_up} trials taken up again")
    assert kills >= 5 and taken_up >= 1, (kills, taken_up)


def _binaries() -> Path | None:
    """Folder of PostgreSQL's server: on the path, or where Debian installs it."""
    found = shutil.which("initdb")
    places = (
        [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((place for place in places if (place / "initdb").is_file()), None)


@pytest.fixture
def postgres() -> Iterator[str]:
    """URL of an empty database on a separate server that listens only on a socket in a temporary folder."""
    binaries = _binaries()
    if binaries is None or not _has_driver():
        pytest.skip("needs PostgreSQL's server (Debian: postgresql) and its driver (pip install 'psycopg[binary]')")
    # Not pytest's folder: the path of a socket must be short, and the server can require another user.
    folder = Path(tempfile.mkdtemp(prefix="muneox-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data = folder / "data"
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [*as_user, binaries / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"]
    subprocess.run(list(map(str, initdb)), check=True, cwd=folder, **quiet)
    serve = [*as_user, binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
    server = subprocess.Popen(list(map(str, serve)), cwd=folder, **quiet)
    try:
        while subprocess.run([str(binaries / "pg_isready"), "-h", str(folder)], check=False, **quiet).returncode:
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield f"postgresql+psycopg://tester@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown: closes connections
        server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _has_driver() -> bool:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.slow
def test_four_workers_on_postgresql_two_of_which_start_late(proxy: Path, tmp_path: Path, postgres: str) -> None:
    """Two commands with two workers each use one server. The four workers train every trial once."""
    space = write_space(tmp_path, SPACE)
    common: tuple[object, ...] = (proxy, "--space", space, "--trials", "24", "--workers", "2", "--study", postgres)
    common += ("--train-iters", "150", "--eval-interval", "150")

    def begin(out: str) -> subprocess.Popen[str]:
        command = search_command(*common, "--out", tmp_path / out)
        to: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment(), **to)

    one = begin("one")
    while not (tmp_path / "one" / "search").is_dir() and one.poll() is None:  # the first trial is running
        time.sleep(0.2)
    two = begin("two")
    said = [process.communicate(timeout=280)[0] for process in (one, two)]
    assert one.returncode == two.returncode == 0, said
    study = open_finished(postgres)
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(24))
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    assert not any("taken_up" in trial.user_attrs for trial in trials)
    folders = [Path(run["log_dir"]) for trial in trials for run in trial.user_attrs["runs"].values()]
    made = [path.parent for out in ("one", "two") for path in (tmp_path / out / "search").glob("*/*/metrics*.jsonl")]
    assert sorted(made) == sorted(folders)  # no run was trained twice, not even to be discarded
    assert len({trial.user_attrs["owner"]["name"] for trial in trials}) == 4


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.slow
def test_an_agent_loop_of_key_value_arguments_trains_ten_settings(proxy: Path, tmp_path: Path) -> None:
    """Run the unmodified program with --key=value for every parameter, as `wandb agent` does for a sweep."""
    command = [sys.executable, "train.py", str(proxy)]
    rates = [10 ** (-3 + 0.2 * k) for k in range(10)]
    for number, lr in enumerate(rates):
        keys = {
            "lr": lr,
            "min-lr": 0.0,
            "mup-output-temp": 0.5,
            "optimizer.params.eps": 1e-9,
            "do-test": "false",
            "log_dir": tmp_path / f"{number}",
        }
        line = [*command, *(f"--{key}={value}" for key, value in keys.items())]
        done = subprocess.run(
            line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
    headers = [read_metrics(tmp_path / f"{number}" / "metrics.jsonl")[0]["config"] for number in range(10)]
    assert [header["lr"] for header in headers] == pytest.approx(rates)
    assert all(header["optimizer"]["params"]["eps"] == 1e-9 and header["mup_output_temp"] == 0.5 for header in headers)
