"""Any process of a run is killed at any moment, again and again: the losses stay those of a run without kills."""

from __future__ import annotations

import os
import random
import re
import signal
import time

import pytest

from megatron.monitoring import read_metrics
from tests.launch.processes import marked, wait_until
from tests.launch.runs import Run
from tests.launch.test_training_signals import DEEPY
from tests.training.harness import make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]

KILLS = 13  # under each of four layouts: 52
SAVED_EVERY = 5
LAYOUTS = {
    "DP 2": {},
    "TP 2": {"model_parallel_size": 2},
    "PP 2": {"pipe_parallel_size": 2},
    "ZeRO 1": {"zero_optimization": {"stage": 1}},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("kills") / "text_document")


def recorded(run) -> dict[int, float]:
    """The loss of each step in metrics.jsonl, as it was written."""
    records = read_metrics(run.folder / "log" / "metrics.jsonl")[1]
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def start_of(run) -> int:
    """The step at which the run has resumed."""
    said = run.output.read_text()
    found = re.search(r"resumed from \S+ at step (\d+)", said)
    return int(found[1]) if found else 0


def kill_one(run, chance: random.Random) -> str:
    """Kill a process of the run at a random moment after its first new step. Returns what it was."""
    begun = len(recorded(run)) if run.process.poll() is None else 0
    start = start_of(run)
    wait_until(
        lambda: run.process.poll() is not None or max(recorded(run), default=0) > max(start, start_of(run)),
        120,
        lambda: f"no new step after {begun}: {run.output.read_text()}",
    )
    time.sleep(chance.uniform(0.0, 1.5))
    processes = marked(run.mark)
    victim = chance.choice(sorted(processes))
    os.kill(victim, signal.SIGKILL)
    return processes[victim]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_resume_continues_the_run(corpus, tmp_path, name):
    chance = random.Random(name)
    changes = {"checkpoint_factor": SAVED_EVERY, "eval_interval": 7, "eval_iters": 2, "keep_last_n_checkpoints": 3}
    (tmp_path / "killed").mkdir()
    run = Run(corpus, tmp_path / "killed", DEEPY, load=str(tmp_path / "killed" / "ck"), **changes, **LAYOUTS[name])
    losses: dict[int, float] = {}
    for count in range(KILLS):
        victim = kill_one(run, chance)
        assert run.end() != 0, f"{victim}: {run.output.read_text()}"
        for step, loss in recorded(run).items():
            assert losses.setdefault(step, loss) == loss, f"step {step} after kill {count} of {victim}"
        last = max(losses)
        run.start()
        wait_until(lambda: "step" in run.output.read_text(), 120, lambda: run.output.read_text())
        wait_until(lambda: start_of(run) or run.process.poll() is not None, 120, lambda: run.output.read_text())
        # the save of the last step may have been under way
        assert (last - 1) // SAVED_EVERY * SAVED_EVERY <= start_of(run) <= last + 1, run.output.read_text()
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 0
    (tmp_path / "whole").mkdir()
    whole = Run(corpus, tmp_path / "whole", DEEPY, **{**changes, "checkpoint_factor": None}, **LAYOUTS[name])
    whole.wait_for_steps(max(losses) + max(losses) // 7 + 2)
    os.kill(whole.process.pid, signal.SIGTERM)
    assert whole.end() == 0
    expected = recorded(whole)
    assert {step: expected[step] for step in losses} == losses
