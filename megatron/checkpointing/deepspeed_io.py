"""DeepSpeed's file access made safe: hashed, fsynced writing and `weights_only` reading."""

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
    """What a DeepSpeed engine saves and loads through, in place of its TorchCheckpointEngine.

    A failed write is kept for `finish`, not raised: DeepSpeed meets the other ranks in a barrier after
    writing, and a rank that never got there would leave them waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__
        self._root: Path | None = None
        self._error: Exception | None = None
        self._records: dict[str, FileRecord] = {}

    def begin(self, root: Path) -> None:
        """Start a checkpoint: its records are named relative to `root`."""
        self._root, self._error, self._records = root, None, {}

    def finish(self) -> dict[str, FileRecord]:
        """Records of the files that this rank wrote since `begin`. Raises the first error met."""
        self._root = None
        if self._error is not None:
            raise self._error
        return self._records

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to prepare."""

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Committing is `save_checkpoint`'s work, once all ranks agree."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._error = self._error or error

    def save(self, state_dict: Any, path: str) -> None:
        if self._root is None:
            raise RuntimeError("call megatron.checkpointing.save_checkpoint, not the engine's own save_checkpoint")
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
        """torch.save writes whole storages: DeepSpeed clones slices of flat buffers first."""
        return True


def install(engine: Any) -> VerifiedCheckpointEngine:
    """Make a DeepSpeed engine read and write through a VerifiedCheckpointEngine; idempotent."""
    current = engine.checkpoint_engine
    if isinstance(current, VerifiedCheckpointEngine):
        return current
    if engine.load_universal_checkpoint():
        # That path calls torch.load(weights_only=False) inside DeepSpeed, past any checkpoint engine.
        raise CheckpointError("load_universal_checkpoint reads files that may run code: refused")
    verified = VerifiedCheckpointEngine()
    engine.checkpoint_engine = verified
    # The recovery script would be one more file that can fail outside our reach, and it unpickles anything.
    engine._copy_recovery_script = lambda save_path: None
    return verified
