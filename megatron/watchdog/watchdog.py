"""Two threads in every process of a job: one exchanges signs of life, the other decides whether the job hangs."""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore

from megatron.files import discard_output
from megatron.watchdog.activity import Activity
from megatron.watchdog.position import Position, collective_count, position, stacks, unfinished_on_device
from megatron.watchdog.verdict import State, Verdict, judge, waits_for_long

_PORT, _VERDICT = "watchdog/port", "verdict"
_SHOWN = 32  # ranks in a message


class Watchdog:
    """Ends this process where the job hangs for `limit` seconds, with code 1, a message and its Python stacks.

    Every rank sends its state to a store in the process of rank 0. Rank 0 judges all of them and publishes the verdict;
    the others judge rank 0. The store has a port of its own: the requests of a stopped rank 0 block, which shows that
    it is stopped. Clocks of different hosts are never compared, and the time in which a process itself was suspended
    does not count.

    exit: ends the process, in place of os._exit.
    """

    def __init__(
        self, activity: Activity, rank: int, world_size: int, limit: float, exit: Callable[[int], object] = os._exit
    ) -> None:
        self.activity, self.rank, self.limit, self._exit = activity, rank, limit, exit
        self.interval = min(max(limit / 20, 0.1), 2.0)
        self._state = State.own(rank)
        self._observed = list(range(world_size)) if rank == 0 else [0]
        self._states = {rank: State.unknown(rank) for rank in self._observed}
        self._silent = dict.fromkeys(self._observed, 0.0)
        self._beats = dict.fromkeys(self._observed, 0)
        self._mark: tuple[int, int, Position | None] | None = None
        self._noticed: str | None = None
        self._stopped, self._ending = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._exchange, self._watch)]
        self._world_size = world_size

    def start(self, store: Store, address: str) -> None:
        """Connect to the other ranks. store: one that all ranks share. address: the host of rank 0."""
        limit = timedelta(seconds=self.limit)
        if self.rank == 0:
            self._store = TCPStore(address, 0, None, True, timeout=limit, wait_for_workers=False)
            for key in (*map(str, range(self._world_size)), _VERDICT):
                self._store.set(key, "")
            store.set(_PORT, str(self._store.port))
        else:
            self._store = TCPStore(address, int(store.get(_PORT)), None, False, timeout=limit, wait_for_workers=False)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Leave the job: this rank's silence no longer counts."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()
        for thread in self._threads:  # one that is inside the store at the interpreter's end would abort the process
            thread.join(5.0)
        self._state = dataclasses.replace(self._state, ended=True, beat=self._state.beat + 1)
        if self.rank != 0:
            try:
                self._store.set(str(self.rank), self._state.encoded())
            except RuntimeError:  # rank 0 has ended
                return

    def _exchange(self) -> None:
        """Send this rank's state and fetch those of the observed ranks. Blocks while rank 0 is stopped."""
        keys = [*map(str, self._observed), _VERDICT]
        while not self._stopped.wait(self.interval):
            try:
                self._store.set(str(self.rank), self._state.encoded())
                *states, verdict = self._store.multi_get(keys)
            except RuntimeError:  # rank 0 has ended, which is the business of the launcher
                return
            for rank, state in zip(self._observed, states, strict=True):
                if state:
                    self._states[rank] = State.decoded(state)
            if verdict and self.rank != 0:
                self._end(Verdict.decoded(verdict))

    def _watch(self) -> None:
        """Note what this rank does, and judge the observed ranks."""
        before = time.monotonic()
        while not self._stopped.wait(self.interval):
            now = time.monotonic()
            passed = min(now - before, 2 * self.interval)  # not the time in which this process was suspended
            before = now
            # writes the stacks without the interpreter, where one thread never gives it up
            faulthandler.dump_traceback_later(self.limit + 2 * self.interval, file=2)
            self._note_own(passed)
            self._note_observed(passed)
            verdict = judge(self._states if self.rank == 0 else self._only_silent(), self._silent, self.limit)
            if verdict is not None:
                self._end(verdict)
            elif self.rank == 0:
                self._notice()

    def _note_own(self, passed: float) -> None:
        activity, old = self.activity, self._state
        where = position(self._own_threads())
        mark = (activity.progress, collective_count(), where if where.operation is not None else None)
        moved = mark != self._mark  # outside of collectives, another line of code is no progress
        self._mark = mark
        stalled = 0.0 if moved else old.stalled + passed
        if where.operation is None and stalled > self.limit / 4:  # reading torch's record takes time
            where = unfinished_on_device() or where
        waiting = stalled if where.operation is not None else 0.0
        self._state = dataclasses.replace(
            old,
            beat=old.beat + 1,
            what=activity.what,
            long=activity.long,
            operation=where.operation,
            place=where.place,
            stalled=stalled,
            waiting=waiting,
        )

    def _note_observed(self, passed: float) -> None:
        for rank in self._observed:
            beat = self._states[rank].beat
            self._silent[rank] = self._silent[rank] + passed if beat == self._beats[rank] else 0.0
            self._beats[rank] = beat

    def _only_silent(self) -> dict[int, State]:
        """Rank 0 as a rank that can only be silent: its own verdict covers the rest."""
        return {rank: dataclasses.replace(state, long=True, waiting=0.0) for rank, state in self._states.items()}

    def _notice(self) -> None:
        line = waits_for_long(self._states, self.limit)
        what = line and line.partition(" for ")[0]
        if line and what != self._noticed:
            print(f"note: {line}", file=sys.stderr, flush=True)
        self._noticed = what

    def _end(self, verdict: Verdict) -> None:
        if not self._ending.acquire(blocking=False) or self._stopped.is_set():
            return
        text = f"error: the job hangs: {verdict.reason}\n"
        if self.rank == 0 or 0 in verdict.hung:
            lines = verdict.ranks if self.rank == 0 else (*verdict.ranks, self._state.describe())
            text += "".join(f"  {line}\n" for line in lines[:_SHOWN])
            text += f"  and {len(lines) - _SHOWN} more\n" if len(lines) > _SHOWN else ""
        own = "".join(f"[rank {self.rank}] {line}\n" for line in stacks(self._own_threads()).splitlines())
        os.write(2, (text + own).encode(errors="replace"))
        for output in (1, 2):  # what follows is the noise of broken connections
            discard_output(output)
        if self.rank == 0:
            self._store.set(_VERDICT, verdict.encoded())
        time.sleep(2 * self.interval + 0.5)  # all ranks fetch it before the first of them ends
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun waits 30 s for a process that takes no signal
            self._kill_stopped(verdict)
        self._exit(1)

    def _kill_stopped(self, verdict: Verdict) -> None:
        for rank in verdict.hung:
            silent = self._silent.get(rank, 0.0) >= self.limit
            if silent and rank != self.rank and self._states[rank].is_here():
                os.kill(self._states[rank].process, signal.SIGKILL)

    def _own_threads(self) -> set[int]:
        return {thread.ident for thread in self._threads if thread.ident is not None}
