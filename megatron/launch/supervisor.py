"""Processes that start, stop and end together: signals reach all of them, and none outlives the others."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from megatron.signals import (
    STACKS_SIGNAL,
    STOP_SIGNALS,
    Request,
    Requests,
    blocked,
    handled_signals,
    signal_at_parents_end,
)

GRACE_SECONDS = 5.0
"""Time that the other processes have to end by themselves once one has failed."""

REMOTE_GRACE_SECONDS = 15.0
"""The same for other hosts, once a host has failed."""


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments, and what its environment has besides this one's.

    passed_as: the signal that it takes for a request to stop, where it takes only one; None: any. stop: a command that
    passes the request on in its place, such as to processes on other hosts; kill: the same for an end at once; stacks:
    the same for STACKS_SIGNAL. failure: matches a line of its errors that says that a part of it, such as a host, has
    failed. Group 1 is the code.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    passed_as: signal.Signals | None = None
    stop: Sequence[str] | None = None
    kill: Sequence[str] | None = None
    stacks: Sequence[str] | None = None
    failure: re.Pattern[bytes] | None = None


def supervise(commands: Sequence[Command]) -> int:
    """Start all commands and wait for their end: 0, or the code of the first that failed, 128 + N for signal N.

    SIGTERM, SIGUSR1, SIGINT and SIGHUP are passed on, and the end of the processes is awaited. A second one kills them.
    STACKS_SIGNAL is passed on each time. Where one fails, the others are asked to end, and are killed after
    GRACE_SECONDS.
    """
    with blocked({*handled_signals(), STACKS_SIGNAL, signal.SIGCHLD}) as mask:
        group = _Group(mask)
        try:
            for command in commands:
                group.start(command)
            while group.running:
                group.wait()
        finally:
            group.kill()
    return group.code


class _Group:
    def __init__(self, mask: set[signal.Signals]) -> None:
        """mask: blocked signals of the processes."""
        self.running: dict[int, Command] = {}
        self.code = 0
        self._mask, self._parent = mask, os.getpid()
        self._awaited = {*handled_signals(), STACKS_SIGNAL, signal.SIGCHLD}
        self._requests = Requests()
        self._deadline: float | None = None  # the others are killed then, once one has failed
        self._part_code = 0  # of a part of a command that has failed, while the command waits for its other parts
        self._readers: list[threading.Thread] = []

    def start(self, command: Command) -> None:
        """Start it in a session of its own: a signal to the group of this process comes only once, through here."""
        process = subprocess.Popen(
            list(command.arguments),
            env={**os.environ, **command.environment},
            start_new_session=True,
            preexec_fn=self._prepare,
            stderr=None if command.failure is None else subprocess.PIPE,
        )
        if command.failure is not None:
            assert process.stderr is not None
            reader = threading.Thread(target=self._read, args=(process.stderr, command.failure), daemon=True)
            self._readers.append(reader)
            reader.start()
        process.returncode = 0  # `wait` reaps it, not the Popen object
        self.running[process.pid] = command

    def _read(self, errors: IO[bytes], failure: re.Pattern[bytes]) -> None:
        """Pass the errors of a command on. At the first failure, the rest of it has REMOTE_GRACE_SECONDS to end."""
        for line in errors:
            with contextlib.suppress(OSError):
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            if (found := failure.search(line)) and self._deadline is None:
                self._part_code = int(found[1])
                self._deadline = time.monotonic() + REMOTE_GRACE_SECONDS
                os.kill(self._parent, signal.SIGCHLD)  # ends the wait without a deadline

    def _prepare(self) -> None:
        """In the new process: take signals, also those that a shell's `&` ignores, and end with the launcher."""
        signal_at_parents_end(signal.SIGTERM)
        for number in set(STOP_SIGNALS) & self._awaited:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if os.getppid() != self._parent:
            raise ProcessLookupError("the launcher has ended")  # before it could be followed

    def wait(self) -> None:
        """Until a signal comes or a process ends; act on it."""
        left = 60.0 if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        received = signal.sigtimedwait(self._awaited, left)
        if received is not None and received.si_signo != signal.SIGCHLD:
            self._pass_on(signal.Signals(received.si_signo))
        self._reap()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.code = self.code or self._part_code
            self.kill()

    def _pass_on(self, number: signal.Signals) -> None:
        if number == STACKS_SIGNAL:
            for pid, command in self.running.items():
                if command.stacks is not None:
                    _run(command.stacks)
                else:
                    _send(pid, number)
            return
        request = self._requests.note()
        if request is Request.SECOND:
            print(f"stopped at once by a second signal, {number.name}: this step is not saved", file=sys.stderr)
            self.code = self.code or 128 + number
            self.kill()
        if request is Request.FIRST:
            for pid, command in self.running.items():
                if command.stop is not None:
                    _run(command.stop)
                else:
                    _send(pid, command.passed_as or number)

    def _reap(self) -> None:
        """Take note of all processes that have ended, also of those that a container's first process inherits."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._note_end(ended[0], os.waitstatus_to_exitcode(ended[1]))

    def _note_end(self, pid: int, code: int) -> None:
        command = self.running.pop(pid, None)
        if command is None:
            return
        _send(pid, signal.SIGKILL, group=True)  # what it has left behind
        if code < 0:
            asked = code == -signal.SIGTERM and self._deadline is not None
            if not asked:
                print(f"error: {command.name} was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
            code = 128 - code
        self.code = self.code or code
        if code and self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS
            for other in self.running:
                _send(other, signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process and what it has started."""
        for pid, command in self.running.items():
            if command.kill is not None:
                _run(command.kill)
            _send(pid, signal.SIGKILL, group=True)
        for pid in self.running:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.running.clear()
        for reader in self._readers:
            reader.join(GRACE_SECONDS)


def _send(pid: int, number: signal.Signals, group: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(pid, number)


def _run(command: Sequence[str]) -> None:
    """Run a short command to its end; its failure is the same as a host that cannot be reached."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(list(command), timeout=30, check=False, stdin=subprocess.DEVNULL)
