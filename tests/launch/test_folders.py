"""Folders of checkpoints: nothing to load, another run's folder, and a run that is still training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.launch.runs import Run
from tests.launch.test_training_signals import DEEPY
from tests.training.harness import ROOT, configuration, environment, make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("folders") / "text_document")


def run(corpus, folder, *command, **changes):
    """A short run, in a working folder of its own."""
    config = {**configuration(corpus, folder / "log", train_iters=3, eval_iters=0), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return subprocess.run(
        [sys.executable, *(str(ROOT / word) if word.endswith(".py") else word for word in command), "config.json"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_refused(done, *words, ranks=1):
    """The message, once for each rank that has it, and nothing trained."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and 1 <= len(lines) <= ranks, done.stderr
    assert all(word in line for word in words for line in lines) and "Traceback" not in done.stderr, done.stderr
    assert "step 1/" not in done.stdout


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"finetune": True}, "finetune needs one"),
        ({"no_load_optim": True}, "no_load_optim needs one"),
        ({"do_train": False, "eval_iters": 1}, "do_train: false needs one"),
        ({"iteration": 2}, "holds no checkpoint of step 2"),
    ],
)
def test_a_checkpoint_that_is_needed_and_not_there(corpus, tmp_path, change, cause):
    assert_refused(run(corpus, tmp_path, "train.py", load="nowhere", **change), "nowhere", cause)
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "log").exists()


def test_generation_needs_a_checkpoint(corpus, tmp_path):
    done = run(corpus, tmp_path, "deepy.py", "generate.py", load="nowhere", text_gen_type="unconditional")
    assert_refused(done, "nowhere", "holds no checkpoint")


def test_a_start_without_a_checkpoint_and_a_second_run_in_the_same_folder(corpus, tmp_path):
    """`save: checkpoints`, as in configs/local_setup.yml, in two runs of one working folder."""
    done = run(corpus, tmp_path, *DEEPY, load="checkpoints", save="checkpoints")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "no checkpoint in" in line]
    assert line == "no checkpoint in checkpoints: starting at step 0"
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("global_step3/*")}
    assert before
    second = run(corpus, tmp_path, *DEEPY, save="checkpoints", log_dir=str(tmp_path / "second"))
    way_out = "continue that run with load: checkpoints, or choose another folder"
    assert_refused(second, "save: checkpoints holds checkpoints of another run (step 3)", way_out, ranks=2)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("global_step3/*")}
    assert not (tmp_path / "second").exists()
    third = run(
        corpus, tmp_path, *DEEPY, save="checkpoints", load="checkpoints", train_iters=5, override_lr_scheduler=True
    )
    assert third.returncode == 0 and f"resumed from {tmp_path}/checkpoints/global_step3 at step 3" in third.stdout, (
        third.stderr
    )


def test_a_folder_in_which_a_run_trains(corpus, tmp_path):
    (tmp_path / "other").mkdir()
    training = Run(corpus, tmp_path, DEEPY)
    folder = str(tmp_path / "ck")
    assert_refused(run(corpus, tmp_path / "other", *DEEPY, save=folder, load=folder), folder, "another run", ranks=2)
    os.kill(training.process.pid, signal.SIGTERM)
    assert training.end() == 0
    training.assert_saved()
