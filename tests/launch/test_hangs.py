"""Real runs in which one process hangs: the job ends in time, names it, and leaves no process."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.launch.runs import Run
from tests.launch.test_training_signals import DEEPY, TORCHRUN
from tests.training.harness import make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]

LIMIT = 6.0  # seconds
MINUTES = LIMIT / 60
HUNG = str(Path(__file__).with_name("hung.py"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("hangs") / "text_document")


@pytest.mark.parametrize("layout", [{}, {"model_parallel_size": 2}, {"pipe_parallel_size": 2}], ids=["dp", "tp", "pp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named(corpus, tmp_path, rank, layout):
    run = Run(corpus, tmp_path, DEEPY, distributed_timeout_minutes=MINUTES, **layout)
    stopped = run.workers()[rank]
    os.kill(stopped, signal.SIGSTOP)
    start = time.monotonic()
    assert run.end() == 1
    assert time.monotonic() - start < LIMIT + 30
    said = run.output.read_text()
    host = socket.gethostname()
    assert f"the job hangs: rank {rank} (process {stopped} on host {host}) has sent no sign of life for 0.1 min" in said
    assert "because it is stopped by a signal" in said
    other = 1 - rank
    assert re.search(rf"rank {other} \(process \d+ on host {host}\) waits in \w+, called at ", said), said
    assert f"[rank {other}]   File " in said  # its stacks


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_ends_too(corpus, tmp_path, rank):
    run = Run(corpus, tmp_path, TORCHRUN, distributed_timeout_minutes=MINUTES)
    os.kill(run.workers()[rank], signal.SIGSTOP)
    start = time.monotonic()
    assert run.end() != 0
    assert time.monotonic() - start < LIMIT + 30
    assert f"the job hangs: rank {rank} (process" in run.output.read_text()


@pytest.mark.parametrize(
    "how, says",
    [
        ("sleep", r"rank 1 .* has made no progress for 0\.1 minutes .* in step \d+"),
        ("mismatch", r"all ranks have waited for each other for 0\.1 minutes"),
    ],
)
def test_a_process_that_waits_alone_is_named(corpus, tmp_path, how, says):
    command = ["deepy.py", HUNG, "--num-gpus", "2"]
    run = Run(corpus, tmp_path, command, distributed_timeout_minutes=MINUTES, variables={"HANG": how})
    assert run.end() == 1
    said = run.output.read_text()
    assert re.search(f"the job hangs: {says}", said), said
    assert "hung.py" in said


def test_a_long_save_is_no_hang(corpus, tmp_path):
    """Rank 0 saves for three times the timeout while the other rank waits."""
    command = ["deepy.py", HUNG, "--num-gpus", "2"]
    changes = {"checkpoint_factor": 4, "train_iters": 8}
    run = Run(corpus, tmp_path, command, distributed_timeout_minutes=MINUTES / 2, variables={"HANG": "save"}, **changes)
    assert run.end() == 0, run.output.read_text()
    said = run.output.read_text()
    assert "note: rank 0" in said and "has been in saving step 4 for" in said and "the job hangs" not in said


def test_stacks_are_written_on_request(corpus, tmp_path):
    run = Run(corpus, tmp_path, DEEPY)
    os.kill(run.process.pid, signal.SIGUSR2)
    run.wait_for_steps(40)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 0
    said = run.output.read_text()
    assert said.count("Current thread") == 2 and "trainer.py" in said


def test_truncated_data_is_an_error_that_names_the_file(corpus, tmp_path):
    own = make_corpus(tmp_path / "own_document")
    run = Run(own, tmp_path, DEEPY)
    data = own.with_name(own.name + ".bin")
    os.truncate(data, data.stat().st_size // 3)
    assert run.end() == 1
    said = run.output.read_text()
    assert f"{data}: it was truncated while in use" in said and "Traceback" not in said, said
    assert "SIGBUS" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_default_is_ten_minutes():
    from megatron.neox_arguments import NeoXArgs

    assert NeoXArgs.__dataclass_fields__["distributed_timeout_minutes"].default == 10
