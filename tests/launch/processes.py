"""The processes that a test has started, found by a mark in their environment, wherever their parents went."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def marked(mark: str) -> dict[int, str]:
    """Process id -> command line of every living process with MARK=`mark` in its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    return {pid: line for pid, line in found.items() if line}


def wait_until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Poll `condition`; AssertionError with `what`, which may be asked for it then, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
