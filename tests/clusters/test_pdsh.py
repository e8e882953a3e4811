"""deepy.py over pdsh and sshd on two hosts: training, signals, killed and stopped processes, secrets."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.clusters.runs import ENDLESS
from tests.launch.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clusters")]

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]
WORKER = r"\S*python\S* -u train\.py"


def started(make_run, **changes):
    """An endless run that has trained some steps, and the process that waits for its deepy.py."""
    run = make_run(steps=ENDLESS, **changes)
    process = run.deepy()
    run.wait_for_steps(20)
    return run, process


def deepy_itself(run) -> int:
    """The process of deepy.py on node1: `process` is nsenter, which stays its parent."""
    [found] = run.find(r"python deepy\.py")
    return found


def workers_of(run, host: str) -> list[int]:
    """The training processes of a host, without their loaders."""
    name = run.hosts.run(host, ["readlink", "/proc/self/ns/uts"]).strip()
    mine = [pid for pid in run.find(WORKER) if os.readlink(f"/proc/{pid}/ns/uts") == name]
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in mine}
    return [pid for pid in mine if parents[pid] not in mine]


def test_two_hosts_train_as_one_process_does(make_run, references):
    run = make_run()
    assert run.deepy().wait(timeout=240) == 0, run.said()
    run.wait_for_end()
    run.assert_trained_as(references)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_deepy_saves_on_all_hosts(make_run, number):
    run, process = started(make_run)
    os.kill(deepy_itself(run), number)
    assert process.wait(timeout=120) == 0, run.said()
    run.wait_for_end()
    assert run.saved() >= 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_to_a_remote_worker_saves(make_run, number):
    run, process = started(make_run)
    os.kill(workers_of(run, "node2")[0], number)
    assert process.wait(timeout=120) == 0, run.said()
    run.wait_for_end()
    assert run.saved() >= 20


def test_a_signal_and_a_resume_are_one_run(make_run, references):
    run = make_run()
    process = run.deepy()
    run.wait_for_steps(20)
    os.kill(deepy_itself(run), signal.SIGTERM)
    assert process.wait(timeout=120) == 0, run.said()
    run.wait_for_end()
    assert run.deepy().wait(timeout=240) == 0, run.said()
    run.assert_trained_as(references)


def test_a_killed_remote_worker_is_a_failure(make_run):
    run, process = started(make_run)
    os.kill(workers_of(run, "node2")[0], signal.SIGKILL)
    assert process.wait(timeout=120) == 128 + 9, run.said()
    run.wait_for_end()
    assert "was killed by SIGKILL" in run.said()


@pytest.mark.parametrize("victim", [r"python deepy\.py", r"pdsh "])
def test_workers_save_without_their_launcher(make_run, victim):
    run, process = started(make_run)
    for pid in run.find(victim):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    run.wait_for_end()
    assert run.saved() >= 20


def test_a_stopped_remote_worker_is_named(make_run):
    run, process = started(make_run, distributed_timeout_minutes=0.1)
    worker, *_ = workers_of(run, "node2")
    os.kill(worker, signal.SIGSTOP)
    assert process.wait(timeout=120) != 0
    run.wait_for_end()
    assert re.search(r"the job hangs: rank 1 \(process \d+ on host node2\) has sent no sign of life", run.said())


def test_secrets_are_in_no_command_line_output_or_file(make_run):
    """The key of wandb and a listed variable reach the remote worker, and nothing else."""
    secrets = {"WANDB_API_KEY": "key-0123456789", "MY_TOKEN": "token with 'quotes' $HOME"}
    seen: dict[int, str] = {}
    run = make_run(steps=ENDLESS, export_variables=["MY_TOKEN"])
    process = run.deepy(**secrets)

    def trained() -> bool:
        seen.update(run.hosts.processes())
        return run.steps() >= 20

    wait_until(trained, 120, run.said)
    worker, *_ = workers_of(run, "node2")
    environment = Path(f"/proc/{worker}/environ").read_bytes().decode().split("\0")
    assert {f"{name}={value}" for name, value in secrets.items()} <= set(environment)
    os.kill(deepy_itself(run), signal.SIGTERM)
    assert process.wait(timeout=120) == 0, run.said()
    run.wait_for_end()
    written = {str(file): file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    assert len(written) > 5 and len(seen) > 5
    for value in secrets.values():
        assert not [line for line in seen.values() if value in line]
        assert not [name for name, content in written.items() if value.encode() in content]
    assert not list(Path("/tmp").glob("muneox-*-[01]")), "a file with variables is left"
