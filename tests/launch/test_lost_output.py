"""Runs whose terminal is closed, or whose output nobody reads any more, keep what they have trained."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import uuid

import pytest

from megatron.monitoring import read_metrics
from tests.launch.processes import marked, wait_until
from tests.launch.test_training_signals import DEEPY
from tests.training.harness import ROOT, configuration, environment, make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]


class Run:
    """An endless run that has printed some steps to `output`, of which this process has no copy any more."""

    def __init__(self, folder, command, output, read):
        corpus = make_corpus(folder / "text_document")
        config = configuration(corpus, folder / "log", train_iters=100_000, eval_iters=0, num_workers=1)
        (folder / "config.json").write_text(json.dumps({**config, "save": str(folder / "ck")}))
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, *command, str(folder / "config.json")],
            cwd=ROOT,
            env=environment(MARK=self.mark),
            stdin=output,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) if os.isatty(0) else None,
        )
        os.close(output)
        said = b""
        while b"step 5/" not in said:
            said += os.read(read, 10_000)
        os.close(read)

    def steps(self):
        return read_metrics(self.folder / "log" / "metrics.jsonl")[1][-1]["step"]

    def assert_saves(self):
        assert self.process.wait(timeout=180) == 0
        wait_until(lambda: not marked(self.mark), 60, lambda: f"processes are left: {marked(self.mark)}")
        assert (self.folder / "ck" / "latest").read_text() == f"global_step{self.steps()}"


@pytest.mark.parametrize("command", [DEEPY, ["train.py"]], ids=["deepy", "train"])
def test_a_closed_terminal(tmp_path, command):
    """The kernel sends SIGHUP, and nothing can be printed any more."""
    outside, terminal = os.openpty()
    Run(tmp_path, command, terminal, outside).assert_saves()


def test_a_reader_that_ends(tmp_path):
    """`deepy.py ... | head`: the run continues without its output."""
    outside, pipe = os.pipe()
    run = Run(tmp_path, DEEPY, pipe, outside)
    before = run.steps()
    wait_until(lambda: run.steps() >= before + 10, 120, "the run does not continue")
    os.kill(run.process.pid, signal.SIGTERM)
    run.assert_saves()
