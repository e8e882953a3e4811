"""Safe file access for DeepSpeed: hashed and fsynced writes, `weights_only` reads."""

# mypy: allow-subclassing-any
# DeepSpeed's classes carry no types.

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from megatron.checkpointing.integrity import FileRecord, load_safely, write_torch
from megatron.errors import CheckpointError


class VerifiedCheckpointEngine(CheckpointEngine):
    """Checkpoint engine that replaces DeepSpeed's TorchCheckpointEngine.

    A failed write does not raise until `finish`. DeepSpeed enters a barrier after writing, and a rank that raised
    before the barrier would make the other ranks hang.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__
        self._root: Path | None = None
        self._error: Exception | None = None
        self._records: dict[str, FileRecord] = {}

    def begin(self, root: Path) -> None:
        """Start a checkpoint. The names of its records are paths relative to `root`."""
        self._root, self._error, self._records = root, None, {}

    def finish(self) -> dict[str, FileRecord]:
        """Return the records of the files that this rank wrote since `begin`, or raise the first error."""
        self._root = None
        if self._error is not None:
            raise self._error
        return self._records

    def create(self, info: CheckpointCommitInfo) -> None:
        """Do nothing: there is nothing to prepare."""

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Do nothing: `save_checkpoint` commits once all ranks agree."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._error = self._error or error

    def save(self, state_dict: Any, path: str) -> None:
        if self._root is None:
            raise RuntimeError("the engine's save_checkpoint was called: use megatron.checkpointing.save_checkpoint")
        if self._error is not None:
            return
        target = Path(path)
        try:
            self._records[target.relative_to(self._root).as_posix()] = write_torch(target, state_dict)
        except Exception as error:
            self._error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_safely(Path(path), map_location=map_location or "cpu", deepspeed_classes=True)

    def preserves_storage_sharing(self) -> bool:
        """Return True: torch.save writes whole storages, so DeepSpeed must clone slices of flat buffers first."""
        return True


def install(engine: Any) -> VerifiedCheckpointEngine:
    """Make a DeepSpeed engine read and write through a VerifiedCheckpointEngine. Idempotent."""
    current = engine.checkpoint_engine
    if isinstance(current, VerifiedCheckpointEngine):
        return current
    if engine.load_universal_checkpoint():
        # This path calls torch.load(weights_only=False) inside DeepSpeed and bypasses the checkpoint engine.
        raise CheckpointError(
            "load_universal_checkpoint is not supported: it reads files that can run code. Remove it from the "
            "DeepSpeed configuration"
        )
    verified = VerifiedCheckpointEngine()
    engine.checkpoint_engine = verified
    # The recovery script unpickles any file, and writing it can fail outside the control of this class.
    engine._copy_recovery_script = lambda save_path: None
    return verified
