"""Ownership of trials. Each trial belongs to one worker at a time; if the worker dies, another one resumes the trial.

Ownership changes only under the study's lock. The operating system or the server releases the lock when its holder
dies. A worker on this host is dead when its process has exited. A worker on another host is dead when its heartbeat
has not changed for `stale_after` seconds. The heartbeat is a counter in the study, so clocks need not agree.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from megatron.processes import process_stat
from muneox.search.samplers import Planner
from muneox.search.storage import Lock

OWNER = "owner"
BEAT_SECONDS = 10.0
STALE_SECONDS = 90.0
MOST_ERRORS = 3


def host_identity() -> str:
    """Identify this host, boot and process namespace. A process id is unique only within one of them."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{read('/proc/sys/kernel/random/boot_id')[:8]}/{namespace}"


def process_start(pid: int) -> str | None:
    """Start time of a process on this host in clock ticks since boot, or None if it has exited or is a zombie.

    The zombie of a killed worker stays in a container if the container's first process does not reap orphans.
    """
    try:
        state, *numbers = process_stat(pid)
        return None if state in ("Z", "X") else numbers[18]
    except (OSError, IndexError, ValueError):
        pass
    try:  # no /proc: accept any live process with this id
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


@dataclass(frozen=True)
class Worker:
    """One worker process."""

    name: str
    host: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Worker:
        return cls(uuid.uuid4().hex[:12], host_identity(), os.getpid(), process_start(os.getpid()) or "")

    @property
    def key(self) -> str:
        """Study attribute with this worker's heartbeat and figures."""
        return f"worker:{self.name}"


@dataclass
class Liveness:
    """The last heartbeat of each other worker, and when it was first seen."""

    host: str
    stale_after: float = STALE_SECONDS
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def is_dead(self, owner: Mapping[str, Any], beat: int) -> bool:
        if owner["host"] == self.host:
            return bool(process_start(owner["pid"]) != owner["started"])
        now = time.monotonic()
        if self._seen.get(owner["name"], (None, 0.0))[0] != beat:
            self._seen[owner["name"]] = (beat, now)
        return now - self._seen[owner["name"]][1] > self.stale_after


@dataclass(frozen=True)
class Claim:
    """A trial that this worker owns: its number, its parameters and its finished runs."""

    trial: Trial
    number: int
    params: dict[str, Any]
    runs: dict[str, dict[str, Any]]


def all_finished(study: optuna.Study, total: int) -> bool:
    """Whether `study` has `total` trials and every trial is finished."""
    trials = study.get_trials(deepcopy=False)
    return len(trials) >= total and all(trial.state.is_finished() for trial in trials)


class Claims:
    """One worker's view of a study with `total` trials."""

    def __init__(
        self,
        study: optuna.Study,
        lock: Lock,
        total: int,
        plan: Planner,
        distributions: dict[str, BaseDistribution],
        worker: Worker,
        stale_after: float = STALE_SECONDS,
    ) -> None:
        self.study, self.total, self.worker = study, total, worker
        self._lock, self._plan, self._distributions = lock, plan, distributions
        self._liveness = Liveness(worker.host, stale_after)

    def next(self) -> Claim | None:
        """Claim a trial: one whose worker died, otherwise the next of the plan. None if there is nothing to claim."""
        with self._lock():
            trials = self.study.get_trials(deepcopy=False)
            attributes = self.study.user_attrs
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._is_dead(trial.user_attrs[OWNER], attributes):
                    return self._take(trial)
            if len(trials) >= self.total:
                return None
            params = self._plan(len(trials), trials)
            self.study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=params,
                    distributions=self._distributions,
                    user_attrs={OWNER: asdict(self.worker)},
                )
            )
            return _claim(self.study, self.study.get_trials(deepcopy=False)[-1])

    def _is_dead(self, owner: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
        beat = attributes.get(f"worker:{owner['name']}", {}).get("beat", -1)
        return self._liveness.is_dead(owner, beat)

    def _take(self, trial: FrozenTrial) -> Claim:
        claim = _claim(self.study, trial)
        claim.trial.set_user_attr(OWNER, asdict(self.worker))
        claim.trial.set_user_attr("taken_up", trial.user_attrs.get("taken_up", 0) + 1)
        return claim

    def is_over(self) -> bool:
        """Whether every trial of the plan is finished."""
        return all_finished(self.study, self.total)

    def record_run(self, claim: Claim, name: str, figures: Mapping[str, Any]) -> None:
        """Store one finished run of a trial. A worker that resumes the trial does not repeat it."""
        claim.runs[name] = dict(figures)
        with self._lock():
            if self._is_mine(claim):
                claim.trial.set_user_attr("runs", claim.runs)

    def finish(
        self, claim: Claim, state: TrialState, value: float | None = None, note: Mapping[str, Any] | None = None
    ) -> bool:
        """Store the outcome of a trial. Returns False, and stores nothing, if another worker now owns the trial."""
        with self._lock():
            if not self._is_mine(claim):
                return False
            for key, text in (note or {}).items():
                claim.trial.set_user_attr(key, text)
            self.study.tell(claim.number, value, state)
            return True

    def give_up(self, claim: Claim, error: str) -> None:
        """Leave a trial to another worker after an unexpected error. The third error marks the trial as failed.

        The caller must then end its process, which frees the trial.
        """
        with self._lock():
            if self._is_mine(claim):
                errors = [*claim.trial.user_attrs.get("errors", []), error]
                claim.trial.set_user_attr("errors", errors)
                if len(errors) >= MOST_ERRORS:
                    self.study.tell(claim.number, None, TrialState.FAIL)

    def _is_mine(self, claim: Claim) -> bool:
        trial = self.study.get_trials(deepcopy=False)[claim.number]
        return trial.state == TrialState.RUNNING and trial.user_attrs[OWNER]["name"] == self.worker.name


def _claim(study: optuna.Study, trial: FrozenTrial) -> Claim:
    # Optuna continues a stored trial through the constructor of Trial.
    return Claim(
        Trial(study, trial._trial_id), trial.number, dict(trial.params), dict(trial.user_attrs.get("runs", {}))
    )


def live_workers(trials: Sequence[FrozenTrial]) -> int:
    """Number of workers that own a running trial."""
    return len({trial.user_attrs[OWNER]["name"] for trial in trials if trial.state == TrialState.RUNNING})
