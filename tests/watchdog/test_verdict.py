"""Which rank hangs, decided from what the ranks say about themselves."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys

import pytest

from megatron.watchdog.activity import Activity
from megatron.watchdog.verdict import State, Verdict, judge, waits_for_long

LIMIT = 600.0


def state(rank: int, **changes) -> State:
    own = State(rank, "node7", 4000 + rank, "1", beat=9, what="step 12", long=False, place="loop.py:3 in run")
    return dataclasses.replace(own, **changes)


def waiting(rank: int, seconds: float) -> State:
    return state(rank, operation="all_reduce", stalled=seconds, waiting=seconds)


def verdict(*states: State, silent: dict[int, float] | None = None) -> Verdict | None:
    return judge({s.rank: s for s in states}, silent or {}, LIMIT)


def test_a_rank_without_a_beat_hangs():
    found = verdict(state(0), state(1), state(2), silent={1: 600.0, 2: 599.0})
    assert found is not None and found.hung == (1,)
    assert found.reason == (
        "rank 1 (process 4001 on host node7) has sent no sign of life for 10 minutes (distributed_timeout_minutes); "
        "it was last seen in step 12"
    )
    assert found.ranks == (
        "rank 0 (process 4000 on host node7) is outside of collectives, at loop.py:3 in run (step 12)",
        "rank 2 (process 4002 on host node7) is outside of collectives, at loop.py:3 in run (step 12)",
    )


def test_silence_comes_before_those_who_wait_for_it():
    found = verdict(waiting(0, 700.0), waiting(1, 700.0), silent={1: 700.0})
    assert found is not None and found.hung == (1,)
    assert found.ranks == (
        "rank 0 (process 4000 on host node7) waits in all_reduce, called at loop.py:3 in run (step 12)",
    )


def test_a_rank_without_progress_hangs_while_others_wait():
    found = verdict(waiting(0, 650.0), state(1, stalled=600.0))
    assert found is not None and found.hung == (1,)
    assert "rank 1 (process 4001 on host node7) has made no progress for 10 minutes" in found.reason
    assert len(found.ranks) == 2


@pytest.mark.parametrize("changes", [{"stalled": 599.9}, {"stalled": 9e9, "long": True}])
def test_a_busy_rank_does_not_hang(changes):
    assert verdict(waiting(0, 650.0), state(1, **changes)) is None


def test_ranks_that_all_wait_hang_together():
    found = verdict(waiting(0, 600.0), waiting(1, 601.0))
    assert found is not None and found.hung == (0, 1)
    assert found.reason == "all ranks have waited for each other for 10 minutes (distributed_timeout_minutes)"
    assert verdict(waiting(0, 600.0), waiting(1, 599.0)) is None


def test_a_rank_that_has_ended_does_not_count():
    assert verdict(state(0), state(1, ended=True, stalled=9e9), silent={1: 9e9}) is None
    assert verdict(state(0, ended=True)) is None


def test_a_long_activity_is_reported_once_others_wait_for_it():
    saving = state(0, long=True, what="saving step 4", stalled=720.0)
    states = {0: saving, 1: waiting(1, 600.0), 2: waiting(2, 599.0)}
    assert waits_for_long(states, LIMIT) == (
        "rank 0 (process 4000 on host node7) has been in saving step 4 for 12 minutes, and 1 other ranks wait for it"
    )
    assert waits_for_long({**states, 1: waiting(1, 10.0)}, LIMIT) is None
    assert waits_for_long({**states, 0: dataclasses.replace(saving, stalled=599.0)}, LIMIT) is None


def test_messages_keep_their_content():
    sent = waiting(3, 4.5)
    assert State.decoded(sent.encoded().encode()) == sent
    found = Verdict((1, 2), "why", ("a", "b"))
    assert Verdict.decoded(found.encoded().encode()) == found


def test_a_rank_that_never_spoke_has_no_process():
    assert str(State.unknown(5)) == "rank 5"


def test_a_process_is_recognised_on_its_own_host_only():
    own = State.own(0)
    assert own.is_here() and own.process == os.getpid() and own.host == socket.gethostname()
    assert not dataclasses.replace(own, host="elsewhere").is_here()
    assert not dataclasses.replace(own, process_start="1").is_here()


def test_the_condition_of_a_silent_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        here = state(1, host=socket.gethostname(), process=process.pid)
        found = verdict(here, silent={1: LIMIT})
    assert found is not None and found.reason.endswith("(distributed_timeout_minutes); it was last seen in step 12")
    found = verdict(here, silent={1: LIMIT})
    assert found is not None and ", because it has ended; it was last seen in step 12" in found.reason


def test_an_activity_counts_its_progress():
    activity = Activity()
    assert activity.long  # the start may take its time
    activity.begin("step 1")
    assert (activity.what, activity.long, activity.progress) == ("step 1", False, 1)
    assert list(activity.advancing(iter([7, 8]))) == [7, 8]
    assert activity.progress == 3
