"""Signals that ask a run to stop. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import faulthandler
import signal
import sys
import time
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""A run that gets one of these finishes its step, saves and exits. SIGUSR1 is Slurm's warning before a time limit."""

STACKS_SIGNAL = signal.SIGUSR2
"""A worker that gets this writes the Python stacks of its threads to stderr and continues."""

REPEAT_SECONDS = 2.0
"""A signal so soon after the first one is the same request: a process can get it directly and from its launcher."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def handled_signals() -> tuple[signal.Signals, ...]:
    """STOP_SIGNALS without SIGHUP where it is ignored: under nohup, the end of the terminal is no request."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignored)


def write_stacks_when_asked() -> None:
    """Write the Python stacks of all threads to stderr at STACKS_SIGNAL, and where the process crashes.

    A crash is a SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT.
    """
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)


class Request(enum.Enum):
    """A signal's place among the requests to stop."""

    FIRST = 1
    REPEATED = 2  # the first request again, by another path
    SECOND = 3


class Requests:
    """Counts requests to stop. Signals within REPEAT_SECONDS of the first one belong to the first request."""

    def __init__(self) -> None:
        self._first: float | None = None

    def note(self) -> Request:
        """Note a signal that arrives now. Returns the request that it is."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return Request.FIRST
        return Request.SECOND if now - self._first > REPEAT_SECONDS else Request.REPEATED


@contextlib.contextmanager
def blocked(numbers: set[signal.Signals]) -> Iterator[set[signal.Signals]]:
    """Keep `numbers` pending in this thread, for `signal.sigtimedwait`; yields the mask of before."""
    before = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, numbers)}
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signal_at_parents_end(number: signal.Signals) -> None:
    """Let the kernel send `number` to this process when the process that started it ends. Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


_LIBC = ctypes.CDLL(None)  # here: a forked process that has not called exec yet must not load libraries
