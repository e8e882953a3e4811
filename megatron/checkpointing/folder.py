"""A save folder belongs to one run: a lock while the run trains, and no checkpoints of another run in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from megatron.checkpointing import collective
from megatron.checkpointing.layout import step_directories
from megatron.errors import CheckpointError

LOCK = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def folder_lock(save_dir: Path) -> Iterator[None]:
    """Keep other processes from training into `save_dir`. Collective; rank 0 holds the lock.

    It is a POSIX record lock on `<save_dir>/.lock`: the system frees it when the process ends, however it ends, and
    processes that the run starts (such as those that load data) do not hold it. Raises CheckpointError where another
    process holds it, or the folder cannot be written. A file system without locks costs a warning.
    """
    held: list[int] = []
    collective.from_rank_0(lambda: held.append(_acquire(save_dir)))
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _acquire(save_dir: Path) -> int:
    """Descriptor of the locked file. To close any descriptor of that file in this process frees the lock."""
    path = save_dir / LOCK
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CheckpointError(f"save: {save_dir} cannot be written: {error.strerror}") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise CheckpointError(
                f"save: another run trains into {save_dir} ({holder}): choose another folder, or stop that run first"
            ) from None
        logger.warning("%s cannot be locked (%s): make sure that no other run saves there", path, error.strerror)
        return descriptor
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def check_own_folder(save_dir: Path, loaded: Path | None) -> None:
    """Raise CheckpointError where `save_dir` holds checkpoints and the run does not continue one of them.

    loaded: the checkpoint that the run continues, `<folder>/global_step{N}`. Collective.
    """

    def check() -> None:
        steps = step_directories(save_dir.absolute())
        if steps and (loaded is None or loaded.parent != save_dir.absolute()):
            there = f"step {min(steps)}" if len(steps) == 1 else f"steps {min(steps)} to {max(steps)}"
            raise CheckpointError(
                f"save: {save_dir} holds checkpoints of another run ({there}): "
                f"continue that run with load: {save_dir}, or choose another folder"
            )

    collective.from_rank_0(check)
