"""A run that is killed at any moment, or runs out of disk space, has an intact checkpoint and resumes exactly."""

from __future__ import annotations

import builtins
import errno
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing import find_intact, load_weights, step_directories, verify
from megatron.checkpointing import integrity as integrity_module
from megatron.checkpointing import save as save_module
from megatron.checkpointing.integrity import write_bytes, write_torch
from megatron.errors import CheckpointError
from tests.checkpointing import harness


class Killed(BaseException):
    """Simulates SIGKILL: after it nothing touches the disk."""


class Disk:
    """Counts the file-system operations of a save, and raises at one of them."""

    def __init__(self, stop_at: int, failure: Callable[[], BaseException], *, once: bool = False) -> None:
        self.count, self.stop_at, self.failure, self.once = 0, stop_at, failure, once

    def guard(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.stop_at or (self.count > self.stop_at and not self.once):
                raise self.failure()
            return operation(*args, **kwargs)

        return guarded


@contextmanager
def interposed(disk: Disk, *, deleting: bool = True) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "fsync", "mkdir"):
            patch.setattr(os, name, disk.guard(getattr(os, name)))
        patch.setattr(integrity_module, "open", disk.guard(builtins.open), raising=False)
        if deleting:
            patch.setattr(shutil, "rmtree", interruptible_rmtree(disk, shutil.rmtree))
        yield


def interruptible_rmtree(disk: Disk, rmtree: Callable[..., None]) -> Callable[..., None]:
    """Split rmtree into two operations: delete one file, delete the rest."""

    def delete(path: Path, ignore_errors: bool = False) -> None:
        for file in sorted(file for file in Path(path).rglob("*") if file.is_file())[:1]:
            disk.guard(file.unlink)()
        disk.guard(rmtree)(path, ignore_errors=ignore_errors)

    return delete


def killed_at(operation: int, engine: Any, save_dir: Path, iteration: int, **options: Any) -> bool:
    try:
        with interposed(Disk(operation, Killed)):
            harness.save(engine, save_dir, iteration, **options)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("iteration", [4, 3])
def test_killed_at_each_file_system_operation(engine: Any, checkpoints: Path, tmp_path: Path, iteration: int) -> None:
    """Step 4 is new. Step 3 exists, is named in `latest`, and is replaced."""
    operation = 0
    killed = True
    while killed:
        operation += 1
        save_dir = Path(shutil.copytree(checkpoints, tmp_path / f"killed-{operation}"))
        killed = killed_at(operation, engine, save_dir, iteration, keep_last_n=2)
        path = find_intact(save_dir)
        assert path is not None
        loaded = load_weights(save_dir)
        assert loaded.iteration in ((3,) if iteration == 3 else (3, 4))
        harness.save(engine, save_dir, 5)  # the next save removes what the crash left, and loses no step
        names = {p.name for p in save_dir.iterdir()}
        assert {"global_step3", "global_step5", "latest"} <= names
        assert names <= {*(f"global_step{n}" for n in range(1, 6)), "latest"}
        assert verify(save_dir) == []
        shutil.rmtree(save_dir)
    assert operation > 20  # the patches intercepted the writes


@pytest.mark.parametrize("iteration", [4, 3])
def test_each_failing_operation_leaves_the_old_checkpoints(
    engine: Any, checkpoints: Path, tmp_path: Path, iteration: int
) -> None:
    """If any one operation finds no space left: a clear error, no temporary files, earlier steps stay intact."""
    full = lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: E731
    errors = 0
    for operation in range(1, 100):
        save_dir = Path(shutil.copytree(checkpoints, tmp_path / f"full-{operation}"))
        disk = Disk(operation, full, once=True)
        try:
            with interposed(disk, deleting=False):
                harness.save(engine, save_dir, iteration)
        except CheckpointError as error:
            errors += 1
            assert str(save_dir) in str(error) and "No space left on device" in str(error)
        assert not [p.name for p in save_dir.iterdir() if p.name.startswith(".")]
        assert verify(save_dir) == []
        for step in (1, 2, 3):
            assert verify(save_dir / f"global_step{step}") == []
        if disk.count < operation:
            break
    assert errors > 15


def test_a_full_device_raises_enospc(tmp_path: Path) -> None:
    """If the failed write raised inside torch's zip writer, torch would report an unexpected position instead."""
    device = Path("/dev/full")
    with pytest.raises(OSError) as caught:
        write_torch(device, {"x": torch.zeros(10**6)})
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as caught:
        write_bytes(device, b"x" * 10)
    assert caught.value.errno == errno.ENOSPC


def test_unwritable_directory(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=f"could not be written to {tmp_path / 'file' / 'checkpoints'}"):
        harness.save(engine, tmp_path / "file" / "checkpoints", 1)


def test_unsafe_client_state_leaves_nothing(engine: Any, checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match="model_states.pt would contain pathlib"):
        save_module.save_checkpoint(engine, checkpoints, 4, client_state={"path": Path("x")})
    assert verify(checkpoints) == [] and not (checkpoints / "global_step4").exists()


def test_keep_last_n_counts_intact_ones(engine: Any, checkpoints: Path) -> None:
    file = checkpoints / "global_step3" / "mp_rank_00_model_states.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    harness.save(engine, checkpoints, 4, keep_last_n=2)
    assert sorted(step_directories(checkpoints)) == [2, 3, 4]  # 3 is damaged, so 2 is the second intact one
    (checkpoints / "global_step4" / "rng_rank_00.pt").unlink()
    harness.save(engine, checkpoints, 5, keep_last_n=2)
    assert sorted(step_directories(checkpoints)) == [2, 3, 4, 5]
    harness.save(engine, checkpoints, 6, keep_last_n=2)
    assert sorted(step_directories(checkpoints)) == [5, 6]


def test_keep_last_n(engine: Any, checkpoints: Path) -> None:
    def steps() -> list[str]:
        return sorted(path.name for path in checkpoints.glob("global_step*"))

    harness.save(engine, checkpoints, 5, keep_last_n=2)
    assert steps() == ["global_step3", "global_step5"]
    harness.save(engine, checkpoints, 4, keep_last_n=1)  # rewound: the step in `latest` stays, and so does step 5
    assert steps() == ["global_step4", "global_step5"]
    assert find_intact(checkpoints) == checkpoints / "global_step4"
    harness.save(engine, checkpoints, 6, keep_last_n=None)
    assert steps() == ["global_step4", "global_step5", "global_step6"]


def test_replacing_a_step(engine: Any, checkpoints: Path) -> None:
    before = (checkpoints / "global_step3" / "manifest.json").read_text()
    engine.global_steps += 1
    harness.save(engine, checkpoints, 3)
    assert (checkpoints / "global_step3" / "manifest.json").read_text() != before
    assert verify(checkpoints) == []


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
def test_kill_minus_nine_at_random_moments(one_process: None, tmp_path: Path) -> None:
    """The run saves after each step and is killed repeatedly: its losses equal those of a run that never saved."""
    chance = random.Random(0)
    losses: dict[int, str] = {}
    starts = []
    for _ in range(6):
        start, piece = run_and_kill(tmp_path, chance.uniform(0.2, 1.0))
        last = max(losses, default=0)
        assert last - 1 <= start <= last + 1  # a kill loses at most the step that was being saved
        for step, loss in piece.items():
            assert losses.setdefault(step, loss) == loss
        starts.append(start)
    assert sorted(set(starts)) == starts  # every run made progress
    assert losses == harness.train(harness.build_engine(1), 0, max(losses))


def run_and_kill(save_dir: Path, seconds: float) -> tuple[int, dict[int, str]]:
    """Start or resume the run and kill it `seconds` after it is ready. Returns its first iteration and its losses."""
    [process] = harness.launch("resume", save_dir, "--stage=1", "--stop=100000")
    assert process.stdout is not None
    start, losses, timer = -1, {}, None
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        record = json.loads(line)
        if "start" in record:
            start = record["start"]
            timer = threading.Timer(seconds, process.kill)
            timer.start()
        else:
            losses[record["iteration"]] = record["loss"]
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()[-3000:]
    return start, losses
