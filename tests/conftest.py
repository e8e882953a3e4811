"""For all tests: one thread a process, and no deadlines, since a busy machine is no defect."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)  # a landing must not hang on a draw
settings.load_profile("ci" if os.environ.get("CI") else "tests")


if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup: started processes would ignore it too
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # ignored here, and the default in what tests start


@pytest.fixture(autouse=True)
def _no_ranks_left_behind() -> Iterator[None]:
    """A test that trains in this process sets RANK and its kin, which the next test must not take for a launcher's."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
