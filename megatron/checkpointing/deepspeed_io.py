"""Safe file access for DeepSpeed: hashed and fsynced writes, `weights_only` reads."""

# mypy: allow-subclassing-any
# DeepSpeed's classes carry no types.

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from megatron.checkpointing.integrity import FileRecord, load_safely, write_torch
from megatron.errors import CheckpointError

_OPTIMIZER = "optim_states.pt"  # end of the names of files that hold only a part of the optimizer


class FileWriter:
    """The files of one checkpoint that this rank writes.

    A failed write does not raise until `write`. DeepSpeed enters a barrier after writing, and a rank that raised before
    the barrier would make the other ranks hang.
    """

    def __init__(self, root: Path, copy: bool) -> None:
        self._root, self._copy = root, copy
        self._copies: list[tuple[Path, Any]] = []
        self._error: Exception | None = None
        self._records: dict[str, FileRecord] = {}

    def save(self, state: Any, path: Path) -> None:
        """Write `state`, or copy it for `write`."""
        if self._copy:
            self.attempt(lambda: self._copies.append((path, copy_to_cpu(state))))
        else:
            self._write(path, state)

    def attempt(self, action: Callable[[], object]) -> None:
        """Call `action` unless an earlier one failed, and keep its error for `write`."""
        if self._error is None:
            try:
                action()
            except Exception as error:
                self._error = error

    def write(self) -> dict[str, FileRecord]:
        """Write what was copied. Returns the records of all files by path relative to the root, or raises the error."""
        while self._copies:
            self._write(*self._copies.pop(0))  # frees each copy once it is written
        if self._error is not None:
            raise self._error
        return self._records

    def _write(self, path: Path, state: Any) -> None:
        def write() -> None:
            self._records[path.relative_to(self._root).as_posix()] = write_torch(path, state)

        self.attempt(write)


def copy_to_cpu(state: Any) -> Any:
    """Deep copy of a state with its tensors on the CPU. Tensors that share a storage share the copy."""
    storages: dict[int, Any] = {}
    return copy.deepcopy(state, {id(x): _on_cpu(x, storages) for x in _tensors(state) if x.device.type != "cpu"})


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(value)


def _on_cpu(x: torch.Tensor, storages: dict[int, Any]) -> torch.Tensor:
    storage = x.untyped_storage()
    if storage.data_ptr() not in storages:
        storages[storage.data_ptr()] = storage.cpu()
    return torch.empty(0, dtype=x.dtype).set_(storages[storage.data_ptr()], x.storage_offset(), x.size(), x.stride())


class VerifiedCheckpointEngine(CheckpointEngine):
    """Checkpoint engine that replaces DeepSpeed's TorchCheckpointEngine.

    Between `begin` and `finish`, files go to a `FileWriter`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = type(self).__name__
        self._writer: FileWriter | None = None
        self._optimizer = True

    def begin(self, root: Path, copy: bool = False, optimizer: bool = True) -> None:
        """Start a checkpoint in `root`.

        copy: copy the files' contents now, and let `FileWriter.write` write them. optimizer: also write its state.
        """
        self._writer, self._optimizer = FileWriter(root, copy), optimizer

    def finish(self) -> FileWriter:
        """End the checkpoint. Returns its writer."""
        writer, self._writer = self._writer, None
        assert writer is not None
        return writer

    def create(self, info: CheckpointCommitInfo) -> None:
        """Do nothing: there is nothing to prepare."""

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Do nothing: `save_checkpoint` commits once all ranks agree."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._open().attempt(lambda: os.makedirs(path, exist_ok=exist_ok))

    def save(self, state_dict: Any, path: str) -> None:
        if not self._optimizer:
            if path.endswith(_OPTIMIZER):
                return
            state_dict = {**state_dict, "optimizer": None} if "optimizer" in state_dict else state_dict
        self._open().save(state_dict, Path(path))

    def _open(self) -> FileWriter:
        if self._writer is None:
            raise RuntimeError("the engine's save_checkpoint was called: use that of megatron.checkpointing.save")
        return self._writer

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
