"""Live workers train every trial exactly once and resume the trials of dead workers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from megatron.errors import ConfigError
from muneox.search import claims as claims_module
from muneox.search.claims import Claims, Liveness, Worker, live_workers, process_start
from muneox.search.storage import StudyError, open_storage, open_study
from tests.search import fake_worker
from tests.search.tiny import ROOT, environment

STORES = ["study.db", "study.journal"]


def undisturbed(tmp_path: Path, total: int) -> list[tuple[int, dict, float | None]]:
    where = str(tmp_path / "undisturbed.db")
    fake_worker.work(where, total, 0.0)
    return outcome(where, total)


def outcome(where: str, total: int) -> list[tuple[int, dict, float | None]]:
    trials = fake_worker.claims(where, total).study.get_trials()
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    return [(trial.number, trial.params, trial.value) for trial in trials]


def start(where: Path, total: int, seconds: float, *record: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "tests.search.fake_worker",
        str(where),
        str(total),
        str(seconds),
        *map(str, record),
    ]
    return subprocess.Popen(command, cwd=ROOT, env=environment())


@pytest.mark.parametrize("store", STORES)
def test_threads_share_the_trials(tmp_path: Path, store: str) -> None:
    where, record = str(tmp_path / store), tmp_path / "record"
    fake_worker.claims(where, 5)
    threads = [threading.Thread(target=fake_worker.work, args=(where, 5, 0.01, record)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [json.loads(line)["number"] for line in record.read_text().splitlines()]
    assert sorted(done) == list(range(5))
    assert outcome(where, 5) == undisturbed(tmp_path, 5)


@pytest.fixture(params=STORES)
def two(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Claims, Claims]:
    return fake_worker.claims(str(tmp_path / request.param), 3), fake_worker.claims(str(tmp_path / request.param), 3)


def test_the_trial_of_a_live_worker_is_not_claimed(two: tuple[Claims, Claims]) -> None:
    first, second = two
    numbers = [claim.number for claim in (first.next(), second.next(), second.next()) if claim]
    assert numbers == [0, 1, 2] and second.next() is None and not second.is_over()
    assert live_workers(first.study.get_trials()) == 2


def _gone(worker: Worker) -> Worker:
    """The same worker as if its process id now belonged to another process."""
    return dataclasses.replace(worker, name="gone", started="0")


def test_the_trial_of_a_dead_worker_is_resumed_with_its_parameters_and_runs(two: tuple[Claims, Claims]) -> None:
    first, second = two
    first.worker = _gone(first.worker)
    lost = first.next()
    assert lost is not None
    first.record_run(lost, "w16-s1", {"loss": 1.0})
    found = second.next()
    assert found is not None
    assert (found.number, found.params, found.runs) == (0, lost.params, {"w16-s1": {"loss": 1.0}})
    assert second.next().number == 1  # type: ignore[union-attr]
    # The first worker was only slow, for example on a sleeping laptop: its late result does not count.
    assert not first.finish(lost, TrialState.COMPLETE, 9.0)
    assert second.finish(found, TrialState.COMPLETE, 1.0)
    assert first.study.get_trials()[0].value == 1.0
    assert not second.finish(found, TrialState.COMPLETE, 2.0)


def test_an_error_leaves_the_trial_to_others_until_the_third(two: tuple[Claims, Claims]) -> None:
    _, second = two
    for attempt in range(3):
        second.worker = _gone(second.worker)  # as if the process had ended after the error
        claim = second.next()
        assert claim is not None and claim.number == 0, attempt
        second.give_up(claim, f"disk full {attempt}")
    trial = second.study.get_trials()[0]
    assert trial.state == TrialState.FAIL and trial.user_attrs["errors"] == [f"disk full {k}" for k in range(3)]
    assert second.next().number == 1  # type: ignore[union-attr]


def test_a_worker_on_another_host_is_dead_when_its_heartbeat_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now)
    liveness = Liveness("here", stale_after=10.0)
    owner = {"name": "w", "host": "there", "pid": os.getpid(), "started": "0"}
    for now, beat in ((0.0, 1), (9.0, 1), (9.5, 2), (19.0, 2)):  # noqa: B007 - read by the clock above
        assert not liveness.is_dead(owner, beat)
    now = 20.0
    assert liveness.is_dead(owner, 2)


def test_a_process_is_distinguished_from_a_later_one_with_the_same_id() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = process_start(process.pid)
    assert began and began == process_start(process.pid) and began != process_start(os.getpid())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has exited, and its zombie remains
    assert process_start(process.pid) is None
    process.wait()
    assert process_start(process.pid) is None


def test_another_search_in_the_same_file_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "study.db")
    storage, lock = open_storage(where)
    open_study(storage, lock, "search", {"configuration": {"train_iters": 300}}, where)
    with pytest.raises(StudyError, match=r"configuration.train_iters is 300 there and 200 here. Name another --study"):
        open_study(storage, lock, "search", {"configuration": {"train_iters": 200}}, where)


@pytest.mark.parametrize("name", ["study.db", "study.journal"])
def test_a_file_that_is_not_a_study_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is not a database, nor a journal\n" * 40)
    with pytest.raises(StudyError, match=f"{name}: cannot be used as a study"):
        storage, lock = open_storage(str(tmp_path / name))
        open_study(storage, lock, "search", {}, name)


def test_a_scheme_without_a_lock_is_refused() -> None:
    with pytest.raises(ConfigError, match="mysql://.*expected a file"):
        open_storage("mysql://host/base")


def test_a_journal_with_an_incomplete_last_line_continues(tmp_path: Path) -> None:
    where = tmp_path / "study.journal"
    fake_worker.work(str(where), 2, 0.0)
    with where.open("ab") as file:
        file.write(b'{"op_code": 4, "worker_')
    fake_worker.work(str(where), 4, 0.0)
    assert outcome(str(where), 4) == undisturbed(tmp_path, 4)


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_kill_9_ten_times_changes_nothing(tmp_path: Path, store: str) -> None:
    where, record, total, dice = tmp_path / store, tmp_path / "record", 80, random.Random(store)
    record.touch()
    for _ in range(10):
        workers = [start(where, total, 0.1, record) for _ in range(2)]
        goal = len(record.read_text().splitlines()) + dice.randint(1, 3)
        while len(record.read_text().splitlines()) < goal:
            assert any(worker.poll() is None for worker in workers)
            time.sleep(0.01)
        time.sleep(dice.random() * 0.1)  # in the middle of a trial
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
        assert [worker.wait() for worker in workers] == [-signal.SIGKILL] * 2
    assert start(where, total, 0.0).wait(60) == 0
    assert outcome(str(where), total) == undisturbed(tmp_path, total)
