"""The supervisor with small real processes: who gets which signal, which code comes back, who is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from megatron.signals import REPEAT_SECONDS
from tests.launch.processes import marked, wait_until
from tests.training.harness import ROOT, environment

# Writes what happens to it into a file of its own; ends 0.3 s after a signal that it handles, as a save takes time.
WORKER = """
import os, signal, sys, time
out, handled, code = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), sys.argv[2].split(","), int(sys.argv[3])
def say(word):
    os.write(out, f"{word}\\n".encode())  # a signal can come within it, which a buffered file does not allow
def note(number, frame):
    say(signal.Signals(number).name)
    time.sleep(0.3)
    say("saved")
    raise SystemExit(code)
for name in filter(None, handled):
    signal.signal(signal.Signals[name], note)
open(sys.argv[1] + ".pid", "w").write(str(os.getpid()))
say("ready")
while True:
    time.sleep(0.02)
"""
LAUNCHER = """
import sys
from megatron.launch.supervisor import Command, supervise
folder, workers = sys.argv[1], [spec.split("/") for spec in sys.argv[2:]]
sys.exit(supervise([
    Command(f"worker {i}", [sys.executable, "-c", open("worker.py").read(), f"{folder}/{i}", handled, code])
    for i, (handled, code) in enumerate(workers)
]))
"""
ALL = "SIGTERM,SIGUSR1,SIGINT,SIGHUP"
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]


class Launch:
    def __init__(self, folder, *workers, prefix=()):
        (folder / "worker.py").write_text(WORKER)
        self.folder, self.count, self.mark = folder, len(workers), uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", LAUNCHER, str(folder), *workers],
            cwd=folder,
            env=environment(MARK=self.mark, PYTHONPATH=str(ROOT)),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until(lambda: [words[:1] for words in self.words()] == [["ready"]] * self.count, 30, "no worker is ready")

    def words(self):
        files = [self.folder / str(i) for i in range(self.count)]
        return [file.read_text().split() if file.exists() else [] for file in files]

    def workers(self):
        """Their process ids."""
        return [int((self.folder / f"{i}.pid").read_text()) for i in range(self.count)]

    def end(self):
        """Exit code and what it said, once every process is gone."""
        said = self.process.communicate(timeout=20)[1]
        assert marked(self.mark) == {}
        return self.process.returncode, said


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("to", ["launcher", "group"])
def test_a_signal_reaches_each_worker_once_and_its_save_is_awaited(tmp_path, number, to):
    launch = Launch(tmp_path, f"{ALL}/0", f"{ALL}/0")
    (os.kill if to == "launcher" else os.killpg)(launch.process.pid, number)
    assert launch.end() == (0, "")
    assert launch.words() == [["ready", number.name, "saved"]] * 2


def test_a_shells_background_job_takes_sigint_and_nohup_keeps_off_sighup(tmp_path):
    ignoring = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"]  # as `nohup ... &` in a script
    launch = Launch(tmp_path, f"{ALL}/0", prefix=ignoring)
    os.kill(launch.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert launch.words() == [["ready"]]
    os.kill(launch.process.pid, signal.SIGINT)
    assert launch.end() == (0, "") and launch.words() == [["ready", "SIGINT", "saved"]]


def test_the_first_code_that_fails_is_returned(tmp_path):
    launch = Launch(tmp_path, f"{ALL}/0", f"{ALL}/7")
    os.kill(launch.workers()[1], signal.SIGUSR1)
    assert launch.end()[0] == 7
    assert launch.words() == [["ready", "SIGTERM", "saved"], ["ready", "SIGUSR1", "saved"]]


def test_a_worker_that_is_killed_is_a_failure_and_takes_the_others_along(tmp_path):
    launch = Launch(tmp_path, "/0", f"{ALL}/0")
    os.kill(launch.workers()[0], signal.SIGKILL)
    assert launch.end() == (128 + 9, "error: worker 0 was killed by SIGKILL\n")


def test_a_worker_that_does_not_end_is_killed_with_what_it_has_started(tmp_path):
    launch = Launch(tmp_path, "/0", "/0")
    stubborn = launch.workers()[1]
    os.kill(stubborn, signal.SIGSTOP)  # takes no signal but SIGKILL
    os.kill(launch.workers()[0], signal.SIGTERM)
    assert launch.end()[0] == 128 + 15


def test_a_second_signal_kills(tmp_path):
    launch = Launch(tmp_path, "/0")
    os.kill(launch.workers()[0], signal.SIGSTOP)
    for _ in range(2):
        os.kill(launch.process.pid, signal.SIGINT)
        time.sleep(REPEAT_SECONDS + 0.5)
    code, said = launch.end()
    assert code == 128 + 2 and "second signal, SIGINT" in said


def test_signals_at_once_are_one_request(tmp_path):
    """`timeout` signals its process and then the group."""
    launch = Launch(tmp_path, f"{ALL}/0")
    os.kill(launch.process.pid, signal.SIGTERM)
    os.killpg(launch.process.pid, signal.SIGTERM)
    os.kill(launch.process.pid, signal.SIGHUP)
    assert launch.end() == (0, "")
    [[ready, first, saved]] = launch.words()
    assert (ready, saved) == ("ready", "saved") and first in ("SIGTERM", "SIGHUP")


def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    launch = Launch(tmp_path, f"{ALL}/0", "/0")
    os.kill(launch.process.pid, signal.SIGKILL)
    wait_until(lambda: not marked(launch.mark), 10, "a worker is left")
    assert launch.words() == [["ready", "SIGTERM", "saved"], ["ready"]]


# Says that a host has failed, as pdsh does, and ends by itself only after `seconds`.
PARTS = """
import re, sys
from megatron.launch import supervisor
supervisor.REMOTE_GRACE_SECONDS = 1.0
seconds, mark = sys.argv[1:]
script = f"echo 'pdsh@here: node2: ssh exited with exit code 7' >&2; sleep {seconds}; exit 9"
failure = re.compile(rb"^pdsh@.*: ssh exited with exit code ([1-9]\\d*)")
command = supervisor.Command("parts", ["sh", "-c", script], failure=failure, kill=["touch", mark])
sys.exit(supervisor.supervise([command]))
"""


@pytest.mark.parametrize(("seconds", "code"), [("0", 9), ("100", 7)])
def test_a_command_of_which_a_part_has_failed(tmp_path, seconds, code):
    """It may end by itself, with its own code. After a time it is killed with all its parts."""
    command = [sys.executable, "-c", PARTS, seconds, str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == code and (tmp_path / "killed").exists() == (code == 7), done.stderr
    assert done.stderr == "pdsh@here: node2: ssh exited with exit code 7\n"


def test_the_first_process_of_a_container(tmp_path):
    """As process 1, which the kernel protects from signals without a handler."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces: unshare --user --pid is not permitted here")
    launch = Launch(tmp_path, f"{ALL}/0", prefix=unshare)
    [first] = [pid for pid, line in marked(launch.mark).items() if "supervise" in line and "unshare" not in line]
    os.kill(first, signal.SIGTERM)
    assert launch.end() == (0, "") and launch.words() == [["ready", "SIGTERM", "saved"]]
