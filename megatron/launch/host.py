"""The processes of a run on one of several hosts, where pdsh starts this module through ssh.

python -m megatron.launch.host start RUN INDEX JOB     start the workers of host INDEX and wait for them
python -m megatron.launch.host stop RUN                ask them to save and to end
python -m megatron.launch.host stacks RUN              ask them for their stacks
python -m megatron.launch.host kill RUN                end them at once
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.launch.supervisor import supervise
from megatron.launch.workers import Place, worker_commands
from megatron.signals import STACKS_SIGNAL

MODULE = "megatron.launch.host"
_MARK = "MUNEOX_RUN"


@dataclass(frozen=True)
class HostJob:
    """What every host of a run gets. places: one for each host. has_environment: whether `environment_file` exists."""

    folder: str
    command: tuple[str, ...]
    places: tuple[Place, ...]
    has_environment: bool

    def encode(self) -> str:
        """As base64, which no shell changes."""
        return base64.urlsafe_b64encode(json.dumps(dataclasses.asdict(self)).encode()).decode()

    @classmethod
    def decode(cls, text: str) -> HostJob:
        values = json.loads(base64.urlsafe_b64decode(text))
        places = [Place(**{**place, "devices": tuple(place["devices"])}) for place in values["places"]]
        return cls(values["folder"], tuple(values["command"]), tuple(places), values["has_environment"])


def environment_file(run: str, index: int | str) -> str:
    """The file of one host, readable by its owner alone, that holds variables until the workers start."""
    return f"/tmp/muneox-{run}-{index}"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code of the workers."""
    match arguments:
        case ["start", run, index, job]:
            return _start(run, int(index), HostJob.decode(job))
        case ["stop", run]:
            return _signal(signal.SIGTERM, [pid for pid in _processes() if _is_supervisor(pid, run)])
        case ["stacks", run]:
            return _signal(STACKS_SIGNAL, [pid for pid in _processes() if _is_supervisor(pid, run)])
        case ["kill", run]:
            return _signal(signal.SIGKILL, [pid for pid in _processes() if _belongs(pid, run)])
    print(__doc__, file=sys.stderr)
    return 2


def _start(run: str, index: int, job: HostJob) -> int:
    if job.has_environment:
        file = Path(environment_file(run, index))
        os.environ.update(json.loads(file.read_text()))
        file.unlink()
    os.chdir(job.folder)
    os.environ[_MARK] = run
    threading.Thread(target=_stop_when_unheard, daemon=True).start()
    return supervise(worker_commands(job.places[index], job.command, os.environ.get("CUDA_VISIBLE_DEVICES", "")))


def _stop_when_unheard() -> None:
    """Ask this process to stop once nobody reads its output: pdsh, ssh or the network has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # reports only errors and a connection that is closed
    output.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if int(folder.name) != os.getpid()]


def _is_supervisor(pid: int, run: str) -> bool:
    """Whether its arguments are those of `start`: a shell or ssh that carries them in one word is another process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(words[i : i + 3] == [MODULE, "start", run] for i in range(len(words)))


def _belongs(pid: int, run: str) -> bool:
    if _is_supervisor(pid, run):
        return True
    try:
        return f"{_MARK}={run}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _signal(number: signal.Signals, pids: Sequence[int]) -> int:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
