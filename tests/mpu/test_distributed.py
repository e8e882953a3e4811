"""The helper `run`: a failure is reported with its cause, and a hang ends."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from tests.mpu.distributed import WorkerFailure, run

pytestmark = pytest.mark.xdist_group("multiprocess")


def _fails_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the root cause")
    dist.all_reduce(torch.ones(1))


def _hangs() -> None:
    if dist.get_rank() == 1:
        time.sleep(3600)
    dist.all_reduce(torch.ones(1))


def _rank() -> int:
    return dist.get_rank()


def test_results_are_in_rank_order() -> None:
    assert run(3, _rank) == [0, 1, 2]


def test_the_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(WorkerFailure, match=r"rank 1 of 2 failed first:[\s\S]*the root cause"):
        run(2, _fails_on_rank_1)


def test_a_hang_ends() -> None:
    with pytest.raises(WorkerFailure):
        run(2, _hangs, timeout=2.0)
