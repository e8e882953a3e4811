"""Signals to real training runs: the step is finished and saved, the exit code says so, and no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from megatron.monitoring import read_metrics
from tests.launch.processes import marked, send, wait_until
from tests.training.harness import ROOT, configuration, environment, free_port, make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]
DEEPY = ["deepy.py", "train.py", "--num-gpus", "2"]
MUNEOX = ["-m", "muneox", "train", "--num-gpus", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("signals") / "text_document")


class Run:
    """A run without an end, in two processes of two loader processes each, that has trained some steps."""

    def __init__(self, corpus, folder, command, **changes):
        config = configuration(corpus, folder / "log", train_iters=100_000, eval_iters=0, num_workers=2, **changes)
        config |= {"save": str(folder / "ck")}
        (folder / "config.json").write_text(json.dumps(config))
        if "torch.distributed.run" in command:
            command = [*command[:2], "--master-port", str(free_port()), *command[2:]]
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, str(folder / "config.json")],
                cwd=ROOT,
                env=environment(MARK=self.mark),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for_steps(3)

    def wait_for_steps(self, count):
        metrics = self.folder / "log" / "metrics.jsonl"
        wait_until(
            lambda: self.process.poll() is not None or (metrics.is_file() and metrics.read_text().count("\n") > count),
            240,
            "no step in time",
        )
        assert self.process.poll() is None, self.output.read_text()

    def workers(self):
        """The processes of rank 0 and 1: the children of the launcher, in the order of their start."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sorted(map(int, children.split()))

    def end(self):
        """The exit code, once every process is gone."""
        code = self.process.wait(timeout=120)
        wait_until(lambda: not marked(self.mark), 60, f"processes are left: {marked(self.mark)}")
        return code

    def assert_saved(self):
        """The step that is saved must be the last one trained."""
        step = read_metrics(self.folder / "log" / "metrics.jsonl")[1][-1]["step"]
        assert (self.folder / "ck" / "latest").read_text().strip() == f"global_step{step}", self.output.read_text()
        assert step > 3 and "stopped on request" in self.output.read_text()


def receivers(run, name):
    everyone = list(marked(run.mark))
    return {
        "launcher": [run.process.pid],
        "group": [-run.process.pid],
        "worker": run.workers()[1:2],
        "everyone": everyone,  # Slurm signals all processes of a step
    }[name]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("to", ["launcher", "group", "worker", "everyone"])
def test_deepy(corpus, tmp_path, to, number):
    run = Run(corpus, tmp_path, DEEPY)
    send(receivers(run, to), number)
    assert run.end() == 0, run.output.read_text()
    run.assert_saved()


@pytest.mark.parametrize("to", ["launcher", "group"])
def test_muneox_train(corpus, tmp_path, to):
    run = Run(corpus, tmp_path, MUNEOX)
    send(receivers(run, to), signal.SIGTERM)
    assert run.end() == 0
    run.assert_saved()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("to", ["launcher", "group", "worker", "everyone"])
def test_torchrun(corpus, tmp_path, to, number):
    """The workers save in any case. torchrun's own code is 0 only where it has got no signal itself."""
    run = Run(corpus, tmp_path, TORCHRUN)
    send(receivers(run, to), number)
    code = run.end()
    assert (code == 0) == (to == "worker"), run.output.read_text()
    run.assert_saved()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_train_py_alone_gets_it_with_its_loaders(corpus, tmp_path, number):
    run = Run(corpus, tmp_path, ["train.py"])
    send([-run.process.pid], number)
    assert run.end() == 0
    run.assert_saved()


@pytest.mark.parametrize("to", ["launcher", "worker"])
def test_a_second_signal_ends_at_once(corpus, tmp_path, to):
    run = Run(corpus, tmp_path, DEEPY)
    first, second = run.workers()
    os.kill(first, signal.SIGSTOP)  # a step without an end
    for _ in range(2):
        send([run.process.pid] if to == "launcher" else [second], signal.SIGINT)
        time.sleep(1)
    assert run.end() == 128 + signal.SIGINT
    assert "second signal, SIGINT" in run.output.read_text() and not (run.folder / "ck" / "latest").exists()


@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_sigkill(corpus, tmp_path, victim):
    """A killed worker is a failure and takes the other along; the workers of a killed launcher save and end."""
    run = Run(corpus, tmp_path, DEEPY)
    os.kill(run.workers()[1] if victim == "worker" else run.process.pid, signal.SIGKILL)
    if victim == "worker":
        assert run.end() == 128 + 9
        assert "rank 1 was killed by SIGKILL" in run.output.read_text()
    else:
        assert run.end() == -9
        run.assert_saved()
