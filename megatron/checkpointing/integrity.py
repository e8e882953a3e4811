"""File integrity: files are hashed while written, listed in a manifest, and verified before they are read."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any, cast

import torch

from megatron.checkpointing.layout import LATEST, MANIFEST, read_latest, step_directories, step_of
from megatron.errors import CheckpointError, first_line
from megatron.files import open_regular, parse_json, read_bytes

# Classes of DeepSpeed inside ZeRO shards. Everything else that is not plain data is refused.
ALLOWED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_MANIFEST_FORMAT = 1
_MAX_MANIFEST = 1 << 26  # bytes: several hundred thousand files


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


class _EnumsByValue(pickle.Pickler):
    """Pickles enum members by value.

    Python 3.11.0 to 3.11.3 (Debian 12) pickle a member as a call of getattr, which `weights_only` loading refuses.
    """

    def reducer_override(self, obj: Any) -> Any:
        return (type(obj), (obj.value,)) if isinstance(obj, Enum) else NotImplemented


_PICKLE = SimpleNamespace(__name__="pickle", Pickler=_EnumsByValue)  # the attributes that torch.save reads


class HashingWriter:
    """A binary file for writing that hashes the data passed to it, independently of what the disk stores.

    An OSError is raised by `close`, not when it happens: inside torch's zip writer, "no space left" would become
    "unexpected pos".
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        self._hash.update(data)
        self._size += count
        self._attempt(lambda: self._file.write(data))
        return count

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def close(self) -> FileRecord:
        """Flush and fsync the file, then close it. Raises the first OSError since the file was opened."""
        self.flush()
        self._attempt(lambda: os.fsync(self._file.fileno()))
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise self._error
        return FileRecord(self._size, self._hash.hexdigest())

    def _attempt(self, action: Any) -> None:
        if self._error is None:
            try:
                action()
            except OSError as error:
                self._error = error


def write_bytes(path: Path, content: bytes) -> FileRecord:
    """Write and fsync one small file. Raises OSError."""
    writer = HashingWriter(path)
    writer.write(content)
    return writer.close()


def write_torch(path: Path, state: Any) -> FileRecord:
    """Write with `torch.save` and fsync. Raises OSError, and ValueError if `state` could not be loaded safely."""
    writer = HashingWriter(path)
    try:
        torch.save(state, cast(IO[bytes], writer), pickle_module=_PICKLE)
    finally:
        record = writer.close()
    unsafe = _unsafe_classes(path)
    if unsafe:
        raise ValueError(
            f"{path.name} would contain {', '.join(unsafe)}: save only plain values, lists, dicts and tensors"
        )
    return record


def load_safely(
    path: Path,
    *,
    map_location: Any = "cpu",
    mmap: bool = False,
    deepspeed_classes: bool = False,
    numpy_arrays: bool = False,
) -> Any:
    """Call `torch.load` with `weights_only=True`: no code in the file runs.

    deepspeed_classes: whether to allow the classes of ZeRO shards (`ALLOWED_CLASSES`). numpy_arrays: whether to allow
    NumPy arrays of numbers, which GPT-NeoX saves with the state of NumPy's generator.
    Raises CheckpointError, which names the file.
    """
    allowed = [*(_import_allowed() if deepspeed_classes else []), *(_numpy_allowed() if numpy_arrays else [])]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    except Exception as error:  # torch raises many types for faults of zip, pickle, storage and file system
        raise CheckpointError(f"{path} cannot be loaded: {first_line(error)}") from error


def write_manifest(directory: Path, iteration: int, records: Mapping[str, FileRecord]) -> None:
    """Write `manifest.json`: size and SHA-256 of each file by path relative to `directory`, and a hash of itself.

    Raises OSError.
    """
    files = {name: {"size": r.size, "sha256": r.sha256} for name, r in sorted(records.items())}
    body = {"format": _MANIFEST_FORMAT, "iteration": iteration, "files": files}
    write_bytes(directory / MANIFEST, _render_manifest(body))


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint. Raises CheckpointError if it is missing or any byte of it changed."""
    path = directory / MANIFEST
    try:
        content = read_bytes(path, _MAX_MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        manifest: dict[str, Any] = parse_json(content)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = _render_manifest(body) == content
    except (ValueError, AttributeError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} is damaged")
    if body.get("format") != _MANIFEST_FORMAT:
        raise CheckpointError(f"{path} has format {body.get('format')!r}, but this version reads {_MANIFEST_FORMAT}")
    if problem := _content_problem(body):
        raise CheckpointError(f"{path} is not a manifest of this trainer: {problem}")
    return manifest


def _content_problem(body: Mapping[str, Any]) -> str | None:
    """What a manifest with an intact hash says that `write_manifest` never writes, or None."""
    if type(body.get("iteration")) is not int:
        return "it has no iteration"
    files = body.get("files")
    if not isinstance(files, dict):
        return "it lists no files"
    for name, record in files.items():
        if not name or "\0" in name or "\\" in name or str(PurePosixPath(name)) != name or not _stays_inside(name):
            return f"{name!r} is not the name of a file in the checkpoint"
        if not isinstance(record, dict) or record.keys() != {"size", "sha256"}:
            return f"{name}: expected size and sha256"
        if type(record["size"]) is not int or record["size"] < 0:
            return f"{name}: the size is {record['size']!r}"
        if not isinstance(record["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", record["sha256"]):
            return f"{name}: the SHA-256 is {record['sha256']!r}"
    return None


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name != "."


def verify(directory: str | Path) -> list[str]:
    """Problems of one checkpoint (`global_step{N}`), or of all steps of a save directory and its `latest`.

    Each problem names its file. An empty list means that every byte is as it was written and that loading runs no
    code.
    """
    directory = Path(directory).absolute()
    if step_of(directory) is not None:
        return verify_share(directory)
    steps = step_directories(directory)
    if not steps:
        return [f"{directory}: holds no checkpoint"]
    problems = [problem for path in steps.values() for problem in verify_share(path)]
    if read_latest(directory) not in steps:
        problems.append(f"{directory / LATEST}: missing, or does not name a checkpoint of this directory")
    return problems


def verify_share(directory: Path, rank: int = 0, world_size: int = 1) -> list[str]:
    """Like `verify` for one step, but the processes share the work of hashing.

    Process i mod `world_size` hashes file i. Every process checks that every file exists with the right size, which
    also detects a directory that only some hosts can see.
    """
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    if manifest["iteration"] != step_of(directory):
        return [f"{directory / MANIFEST}: belongs to step {manifest['iteration']}"]
    problems = []
    for index, (name, expected) in enumerate(manifest["files"].items()):
        mine = index % world_size == rank
        problem = _file_problem(directory, name, FileRecord(**expected), read=mine)
        if problem:
            problems.append(f"{directory / name}: {problem}")
    # DeepSpeed finds files by pattern and could load a file that is not in the manifest.
    strangers = {path.name for path in directory.glob("*.pt")} - manifest["files"].keys()
    return problems + [f"{directory / name}: not in the manifest" for name in sorted(strangers)]


def _file_problem(directory: Path, name: str, expected: FileRecord, *, read: bool) -> str | None:
    path = directory / name
    try:
        if not path.resolve().is_relative_to(directory.resolve()):
            return "is a link to a file outside the checkpoint"
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                return f"{size} bytes instead of {expected.size}"
            if not read:
                return None
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that no file can have
        return (getattr(error, "strerror", None) or str(error)).lower()
    if digest != expected.sha256:
        return "SHA-256 differs from the manifest"
    unsafe = _unsafe_classes(path) if path.suffix == ".pt" else []
    return f"refused, because loading it would call {', '.join(unsafe)}" if unsafe else None


def _unsafe_classes(path: Path) -> list[str]:
    """Names of functions and classes in a torch file, except plain data and `ALLOWED_CLASSES`. Runs no code."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        return [f"unreadable contents ({first_line(error)})"]
    return sorted(set(names) - set(ALLOWED_CLASSES))


def _import_allowed() -> list[Any]:
    import importlib

    split = (name.rpartition(".") for name in ALLOWED_CLASSES)
    return [getattr(importlib.import_module(module), attribute) for module, _, attribute in split]


def _numpy_allowed() -> list[Any]:
    """What rebuilds an array of numbers, under the names that NumPy 1 and NumPy 2 write."""
    import numpy as np

    rebuild = np.zeros(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *dtypes]


def _render_manifest(body: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()
