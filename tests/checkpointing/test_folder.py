"""One run per save folder: a lock that a killed process leaves open, and no checkpoints of another run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.checkpointing import check_own_folder, folder_lock
from megatron.errors import CheckpointError

# Holds the lock until it is killed; a child that it forks (as a data loader does) lives on for a while.
HOLDER = """
import os, sys, time
from pathlib import Path
from megatron.checkpointing import folder_lock
with folder_lock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_and_free_again_after_a_kill(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(CheckpointError, match=rf"another run trains into .*process {holder.pid} on "):
            with folder_lock(tmp_path):
                pass
        holder.kill()
        holder.wait()
        with folder_lock(tmp_path):
            pass
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="save: .*file/ck cannot be written"), folder_lock(tmp_path / "file/ck"):
        pass


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    check_own_folder(tmp_path / "new", None)
    for step in (2, 4):
        (tmp_path / f"global_step{step}").mkdir()
    check_own_folder(tmp_path, tmp_path / "global_step2")
    for loaded in (None, tmp_path / "elsewhere" / "global_step2"):
        with pytest.raises(CheckpointError, match=r"another run \(steps 2 to 4\): continue that run with load: "):
            check_own_folder(tmp_path, loaded)
