"""Save a checkpoint atomically: it is complete or does not exist."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megatron.checkpointing import collective
from megatron.checkpointing.integrity import FileRecord, verify_share, write_bytes, write_manifest
from megatron.checkpointing.layout import (
    CONFIGS,
    LATEST,
    MANIFEST,
    OLD_PREFIX,
    TEMPORARY_PREFIX,
    TRASH_PREFIX,
    WITHOUT_OPTIMIZER,
    step_directories,
    step_name,
)
from megatron.checkpointing.rng import rng_state
from megatron.errors import CheckpointError
from megatron.files import sync_directory

if TYPE_CHECKING:
    from megatron.checkpointing.deepspeed_io import FileWriter  # imports DeepSpeed

T = TypeVar("T")

logger = logging.getLogger(__name__)


def save_checkpoint(engine: Any, save_dir: str | Path, iteration: int, **options: Any) -> Path:
    """Save a checkpoint and return its directory. Takes the arguments of `begin_save`, whose promises it keeps."""
    return begin_save(engine, save_dir, iteration, **options).finish()


def begin_save(
    engine: Any,
    save_dir: str | Path,
    iteration: int,
    *,
    client_state: Mapping[str, Any],
    config_files: Mapping[str, str] | None = None,
    keep_last_n: int | None = None,
    rank_state: Mapping[str, Any] | None = None,
    save_rng: bool = True,
    save_optimizer: bool = True,
    executor: Executor | None = None,
) -> PendingSave:
    """Begin to save model, optimizer, schedule, generators and `client_state` as `<save_dir>/global_step{iteration}`.

    Collective: every rank must call it, and then `PendingSave.poll` or `finish`.
    client_state: plain values and tensors (consumed samples, the `mup` section ...), equal on all ranks.
    rank_state: plain values and tensors of this rank.
    config_files: YAML texts by file name, written to `configs/`.
    save_optimizer: with False, a resume cannot continue with the optimizer. Not possible under ZeRO 3, which keeps the
    weights with it.
    keep_last_n: delete older steps once this one is complete. Damaged steps do not count.
    executor: one background thread, in which the files are written. The state is copied to CPU memory first, so that
    training can continue. At most one save may be under way. None writes the files here.

    The files are written and fsynced in a temporary directory next to the others, listed with size and SHA-256 in
    `manifest.json`, and renamed; then `latest` is updated. If `save_dir` contained an intact checkpoint, it contains
    one at every moment of the save. Raises CheckpointError on every rank if any rank cannot write; earlier checkpoints
    stay intact, and the temporary directory is removed.
    """
    job = _Job(Path(save_dir).absolute(), iteration, dict(config_files or {}), keep_last_n)
    with job.failing():
        collective.from_rank_0(job.prepare)
        header = {"iteration": iteration, "client_state": dict(client_state), WITHOUT_OPTIMIZER: not save_optimizer}
        writer = _collect(engine, job.root, header, rank_state, save_rng, executor is not None)
    return PendingSave(job, writer, executor)


class PendingSave:
    """A save that is under way: first every rank writes its files, then rank 0 puts the checkpoint in place.

    Ranks agree on each stage in `poll` and `finish`, so that the background threads need no communication.
    """

    def __init__(self, job: _Job, writer: FileWriter, executor: Executor | None) -> None:
        self._job, self._executor = job, executor
        self._written: Future[dict[str, FileRecord]] = _start(executor, writer.write)
        self._published: Future[None] | None = None

    @property
    def iteration(self) -> int:
        """Step of the checkpoint."""
        return self._job.iteration

    def poll(self) -> Path | None:
        """The directory of the checkpoint once it is complete, else None. Collective; does not wait for files.

        Raises CheckpointError on every rank if the save failed.
        """
        stage: Future[Any] = self._published or self._written
        if not all(collective.gather(stage.done())):
            return None
        with self._job.failing():
            result = collective.on_all_ranks(stage.result)
            if self._published is not None:
                return self._job.place
            records = {name: record for part in collective.gather(result) for name, record in part.items()}
            first = collective.rank() == 0
            self._published = _start(self._executor, (lambda: self._job.publish(records)) if first else _nothing)
        return None

    def finish(self) -> Path:
        """Wait until the checkpoint is complete, and return its directory. Collective; raises as `poll`."""
        while True:
            stage: Future[Any] = self._published or self._written
            wait([stage])
            if (path := self.poll()) is not None:
                return path


def _start(executor: Executor | None, action: Callable[[], T]) -> Future[T]:
    """Run `action` in the executor, or here. An error is the result of the future."""
    if executor is not None:
        return executor.submit(action)
    future: Future[T] = Future()
    try:
        future.set_result(action())
    except Exception as error:
        future.set_exception(error)
    return future


def _nothing() -> None:
    """The part of the other ranks in putting a checkpoint in place."""


@dataclass(frozen=True)
class _Job:
    """Names of one save and its steps on the file system, which rank 0 does."""

    save_dir: Path
    iteration: int
    config_files: Mapping[str, str]
    keep_last_n: int | None

    @property
    def temporary(self) -> Path:
        return self.save_dir / f"{TEMPORARY_PREFIX}{step_name(self.iteration)}"

    @property
    def root(self) -> Path:
        """The checkpoint's directory while it is written."""
        return self.temporary / step_name(self.iteration)

    @property
    def place(self) -> Path:
        """The checkpoint's directory once it is complete."""
        return self.save_dir / step_name(self.iteration)

    def prepare(self) -> None:
        _prepare(self.save_dir, self.root)

    def publish(self, records: dict[str, FileRecord]) -> None:
        _publish(self.save_dir, self.temporary, self.iteration, records, self.config_files)
        _tidy(self.save_dir, self.temporary)
        if self.keep_last_n:
            _prune(self.save_dir, self.iteration, self.keep_last_n)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Tidy up and explain if the save fails in the body. Collective, like the errors in it."""
        try:
            yield
        except CheckpointError as error:
            collective.from_rank_0(lambda: _tidy(self.save_dir, self.temporary))
            raise CheckpointError(
                f"The checkpoint of step {self.iteration} could not be written to {self.save_dir} ({error}). Earlier "
                "checkpoints are unchanged: free disk space or fix the directory, then resume from the last one."
            ) from error


def _prepare(save_dir: Path, root: Path) -> None:
    """Remove what a crash left and create an empty temporary directory."""
    save_dir.mkdir(parents=True, exist_ok=True)
    for stale in save_dir.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(stale)
    for old in save_dir.glob(f"{OLD_PREFIX}*"):
        place = save_dir / old.name.removeprefix(OLD_PREFIX)
        if not place.exists():  # the process was killed between the two renames of a replacement
            os.rename(old, place)
    root.mkdir(parents=True)


def _collect(
    engine: Any,
    root: Path,
    header: dict[str, Any],
    rank_state: Mapping[str, Any] | None,
    save_rng: bool,
    copy: bool,
) -> FileWriter:
    """Write the files of this rank to `root`, or with `copy` their contents to the writer that it returns."""
    from megatron.checkpointing.deepspeed_io import install

    verified = install(engine)
    verified.begin(root, copy, optimizer=not header[WITHOUT_OPTIMIZER])
    engine.save_checkpoint(str(root.parent), tag=root.name, client_state=header, save_latest=False)
    own = {"rng": rng_state() if save_rng else None, "rank_state": dict(rank_state or {})}
    verified.save(own, str(root / rng_file(collective.rank())))
    return verified.finish()


def rng_file(rank: int) -> str:
    """Name of the file with the random generators and the state of one rank."""
    return f"rng_rank_{rank:02d}.pt"


def _publish(
    save_dir: Path,
    temporary: Path,
    iteration: int,
    records: dict[str, FileRecord],
    config_files: Mapping[str, str],
) -> None:
    """On rank 0: write the manifest, move the temporary directory to its place and update `latest`."""
    root = temporary / step_name(iteration)
    for name, record in records.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != record.size:
            raise CheckpointError(f"{name} is not visible on rank 0. All hosts must share the save directory")
    if config_files:
        (root / CONFIGS).mkdir()
        for name, text in config_files.items():
            records[f"{CONFIGS}/{Path(name).name}"] = write_bytes(root / CONFIGS / Path(name).name, text.encode())
        sync_directory(root / CONFIGS)
    write_manifest(root, iteration, records)
    write_bytes(temporary / LATEST, step_name(iteration).encode())  # before the renames, which need no disk space
    sync_directory(root)
    _put_in_place(root, save_dir / root.name)
    os.replace(temporary / LATEST, save_dir / LATEST)
    sync_directory(save_dir)


def _put_in_place(new: Path, final: Path) -> None:
    """Rename `new` to `final`. Until then an existing `final` is renamed to `.old-...`, where loading finds it."""
    old = final.with_name(f"{OLD_PREFIX}{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    try:
        os.rename(new, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    sync_directory(final.parent)


def _tidy(save_dir: Path, temporary: Path) -> None:
    """Delete the remains of this save, replaced checkpoints, and directories whose deletion a crash interrupted."""
    shutil.rmtree(temporary, ignore_errors=True)
    for old in save_dir.glob(f"{OLD_PREFIX}*"):
        if (save_dir / old.name.removeprefix(OLD_PREFIX)).exists():
            shutil.rmtree(old, ignore_errors=True)
    for trash in save_dir.glob(f"{TRASH_PREFIX}*"):
        shutil.rmtree(trash, ignore_errors=True)


def _prune(save_dir: Path, iteration: int, keep_last_n: int) -> None:
    """Keep this step and the `keep_last_n - 1` intact steps before it, with the damaged ones between them.

    Later steps, of a run that was rewound, stay.
    """
    earlier = [path for step, path in step_directories(save_dir).items() if step < iteration]
    intact = 0
    while earlier and intact < keep_last_n - 1:
        intact += _is_intact(earlier.pop())
    for path in earlier:
        trash = path.with_name(f"{TRASH_PREFIX}{path.name}")
        try:
            os.rename(path, trash)  # atomic: a partly deleted directory never looks like a checkpoint
            shutil.rmtree(trash)
        except OSError as error:
            logger.warning("could not delete the old checkpoint %s: %s", path, collective.describe(error))


def _is_intact(path: Path) -> bool:
    """Whether a step is as it was written. Each is read through once per process, then its files' sizes are checked."""
    try:
        written = (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        return False
    # A share of no file in particular: presence and size of all of them, no contents.
    return _was_intact(path, written) and not verify_share(path, rank=-1)


@functools.cache
def _was_intact(path: Path, written: int) -> bool:
    problems = verify_share(path)
    if problems:
        logger.warning("a damaged checkpoint does not count among those to keep:\n  %s", "\n  ".join(problems))
    return not problems
