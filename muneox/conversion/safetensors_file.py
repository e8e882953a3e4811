"""Write .safetensors files one tensor at a time. The library's `save_file` needs all tensors in memory.

Format: the length of the header (u64), the header (JSON: dtype, shape and position of each tensor), the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.files import write_whole

Shape = tuple[int, ...]
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
SHARD_SIZE = 5 * 10**9
"""Default size of a file in bytes, as in transformers up to version 4."""
_SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def num_bytes(shape: Shape, dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def assign_shards(shapes: Mapping[str, Shape], dtype: torch.dtype, limit: int) -> list[list[str]]:
    """Names of the tensors of each file, in order. A tensor that is larger than `limit` has a file of its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        added = num_bytes(shape, dtype)
        if shards[-1] and size + added > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    return shards


@dataclass(frozen=True)
class _Shard:
    file: str
    names: Sequence[str]


class SafetensorsWriter:
    """Writes tensors to one file, or to several with an index. Use it as a context manager.

    shapes: of all tensors by name. They must be added in this order. limit: size of a file in bytes. Raises OSError.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, limit: int = SHARD_SIZE) -> None:
        self._folder, self._shapes, self._dtype = folder, shapes, dtype
        names = assign_shards(shapes, dtype, limit)
        count = len(names)
        files = [_SINGLE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        self._shards = [_Shard(file, part) for file, part in zip(files, names, strict=True)]
        self._order = [(shard, name) for shard in self._shards for name in shard.names]
        self._next = 0
        self._open: tuple[_Shard, IO[bytes]] | None = None

    @property
    def files(self) -> list[str]:
        return [shard.file for shard in self._shards]

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is None:
            assert self._next == len(self._order), f"{self._order[self._next][1]} was not written"
            if len(self._shards) > 1:
                self._write_index()

    def add(self, name: str, x: Tensor) -> None:
        """Write the next tensor, converted to the type of the file. Raises CheckpointError where it overflows."""
        shard, expected = self._order[self._next]
        assert (name, tuple(x.shape)) == (expected, self._shapes[name]), f"{name} {tuple(x.shape)}, not {expected}"
        self._next += 1
        converted = x.to(self._dtype)
        if converted.dtype != x.dtype and not torch.isfinite(converted).all() and torch.isfinite(x).all():
            raise CheckpointError(f"{name}: its values are too large for {self._dtype}: choose bf16 or fp32")
        file = self._file_of(shard)
        converted.contiguous().flatten().view(torch.uint8).numpy().tofile(file)

    def _file_of(self, shard: _Shard) -> IO[bytes]:
        if self._open is None or self._open[0] is not shard:
            self._close()
            file = (self._folder / shard.file).open("wb")
            self._open = shard, file
            file.write(self._header(shard))
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            file = self._open[1]
            self._open = None
            with file:
                file.flush()
                os.fsync(file.fileno())

    def _header(self, shard: _Shard) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in shard.names:
            start, end = end, end + num_bytes(self._shapes[name], self._dtype)
            shape = list(self._shapes[name])
            header[name] = {"dtype": DTYPES[self._dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data is aligned
        return len(text).to_bytes(8, "little") + text

    def _write_index(self) -> None:
        total = sum(num_bytes(shape, self._dtype) for shape in self._shapes.values())
        names = {name: shard.file for shard in self._shards for name in shard.names}
        index = {"metadata": {"total_size": total}, "weight_map": names}
        write_whole(self._folder / INDEX, json.dumps(index, indent=2) + "\n")
