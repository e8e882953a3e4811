"""What ranks say about themselves, and the decision which of them hangs."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron.processes import process_stat

_STATES = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "waiting for a disk or a network file system",
    "Z": "ended",
    "X": "ended",
}


@dataclass(frozen=True)
class State:
    """What one rank says about itself.

    beat: rises with each message. stalled: seconds since its last progress. waiting: seconds in the same collective.
    ended: it has left the job. process_start: tells it from a later process of the same number.
    """

    rank: int
    host: str
    process: int
    process_start: str
    beat: int = 0
    what: str = "the start"
    long: bool = True
    operation: str | None = None
    place: str = ""
    stalled: float = 0.0
    waiting: float = 0.0
    ended: bool = False

    @classmethod
    def own(cls, rank: int) -> State:
        """The first state of this process."""
        return cls(rank, socket.gethostname(), os.getpid(), _process_start(os.getpid()))

    def encoded(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decoded(cls, text: bytes) -> State:
        return cls(**json.loads(text))

    @classmethod
    def unknown(cls, rank: int) -> State:
        """A rank that has sent nothing yet."""
        return cls(rank, "", 0, "")

    def __str__(self) -> str:
        if not self.process:
            return f"rank {self.rank}"
        return f"rank {self.rank} (process {self.process} on host {self.host})"

    def is_here(self) -> bool:
        """Whether the process is one of this host and still the same."""
        return self.host == socket.gethostname() and _process_start(self.process) == self.process_start

    def describe(self) -> str:
        if self.operation is None:
            return f"{self} is outside of collectives, at {self.place} ({self.what})"
        return f"{self} waits in {self.operation}, called at {self.place} ({self.what})"


@dataclass(frozen=True)
class Verdict:
    """The job hangs. hung: ranks that cause it. reason: one line. ranks: one line per rank."""

    hung: tuple[int, ...]
    reason: str
    ranks: tuple[str, ...]

    def encoded(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decoded(cls, text: bytes) -> Verdict:
        values = json.loads(text)
        return cls(tuple(values["hung"]), values["reason"], tuple(values["ranks"]))


def judge(states: Mapping[int, State], silent: Mapping[int, float], limit: float) -> Verdict | None:
    """Which ranks hang, or None. silent: seconds since the last beat of each rank. limit: the timeout in seconds.

    A rank hangs where it has sent no beat, or has made no progress in an activity that is not long and waits for no
    other rank. Where all ranks wait in collectives, they wait for each other: the collectives do not match.
    """
    present = {rank: state for rank, state in states.items() if not state.ended}
    time = f"{limit / 60:.3g} minutes (distributed_timeout_minutes)"
    quiet = {rank: state for rank, state in present.items() if silent.get(rank, 0) >= limit}
    if quiet:
        others = {rank: state for rank, state in present.items() if rank not in quiet}
        return _verdict(
            quiet, [f"{s} has sent no sign of life for {time}{_condition(s)}" for s in quiet.values()], others
        )
    stuck = {r: s for r, s in present.items() if not s.long and s.operation is None and s.stalled >= limit}
    if stuck:
        return _verdict(stuck, [f"{s} has made no progress for {time} in {s.what}" for s in stuck.values()], present)
    if present and all(state.operation is not None and state.waiting >= limit for state in present.values()):
        return _verdict(present, [f"all ranks have waited for each other for {time}"], present)
    return None


def waits_for_long(states: Mapping[int, State], limit: float) -> str | None:
    """A line about ranks that have been busy for longer than the timeout, as they may, while others wait."""
    waiting = [state for state in states.values() if state.waiting >= limit and not state.ended]
    busy = [state for state in states.values() if state.long and state.operation is None and state.stalled >= limit]
    if not waiting or not busy:
        return None
    first = busy[0]
    time = f"{first.stalled / 60:.3g} minutes"
    return f"{first} has been in {first.what} for {time}, and {len(waiting)} other ranks wait for it"


def _verdict(hung: Iterable[int], reasons: list[str], shown: Mapping[int, State]) -> Verdict:
    return Verdict(tuple(hung), "; ".join(reasons), tuple(state.describe() for state in shown.values()))


def _condition(state: State) -> str:
    """What the kernel says about a silent process of this host, and what it did last."""
    last = f"; it was last seen in {state.what}"
    if state.host != socket.gethostname():
        return last
    try:
        letter = process_stat(state.process)[0]
    except OSError:
        return f", because it has ended{last}"
    return f", because it is {_STATES[letter]}{last}" if letter in _STATES else last


def _process_start(process: int) -> str:
    """The time at which the kernel started the process, in its own unit; empty where there is no such process."""
    try:
        return process_stat(process)[19]
    except OSError:
        return ""
