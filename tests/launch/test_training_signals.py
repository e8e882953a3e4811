"""Signals to real training runs: the step is finished and saved, the exit code says so, and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from megatron.signals import REPEAT_SECONDS
from tests.launch.processes import marked, send, wait_until
from tests.launch.runs import Run
from tests.training.harness import make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]
DEEPY = ["deepy.py", "train.py", "--num-gpus", "2"]
MUNEOX = ["-m", "muneox", "train", "--num-gpus", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("signals") / "text_document")


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


@pytest.mark.parametrize("command", [DEEPY, ["train.py"]], ids=["deepy", "train"])
def test_signals_after_the_end_change_nothing(corpus, tmp_path, command):
    """Slurm's warning can reach a run that has finished and has not left yet."""
    run = Run(corpus, tmp_path, command, train_iters=100)
    wait_until(lambda: "finished at step 100" in run.output.read_text(), 120, "no end in time")
    receivers = run.workers() if command == DEEPY else [run.process.pid]
    sent = 0
    while run.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            send(receivers, signal.SIGUSR1)
            sent += 1
        time.sleep(0.01)
    assert (run.end(), sent > 1) == (0, True), run.output.read_text()


@pytest.mark.parametrize("to", ["launcher", "worker"])
def test_a_second_signal_ends_at_once(corpus, tmp_path, to):
    run = Run(corpus, tmp_path, DEEPY)
    first, second = run.workers()
    os.kill(first, signal.SIGSTOP)  # a step without an end
    for _ in range(2):
        send([run.process.pid] if to == "launcher" else [second], signal.SIGINT)
        time.sleep(REPEAT_SECONDS + 0.5)
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
