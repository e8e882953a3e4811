"""Read the weights of a checkpoint that GPT-NeoX saved, under any tensor and pipeline layout.

Merging follows its layers (megatron/mpu/layers.py and megatron/model/transformer.py of EleutherAI/gpt-neox).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpointing.integrity import load_safely
from megatron.checkpointing.neox_names import (
    ROW_BIASES,
    SPLIT_GATE,
    is_buffer,
    layer_files,
    place,
    rank_files,
    spellings,
)
from megatron.errors import CheckpointError, refusing
from megatron.mappings import ABSENT, Difference, difference_table
from megatron.mpu import Shard, unshard

VOCABULARY = ("embedding.word_embeddings.weight", "readout.weight")


@dataclass(frozen=True)
class Assembly:
    """How the whole parameters of a model are made of the shards in GPT-NeoX's files.

    shapes: unpadded global shapes by our name. shards: (dim, blocks) of the parameters that tensor parallelism splits.
    parallel_residual: whether the branches of a block are summed before the ranks are, which also sums their biases.
    """

    shapes: Mapping[str, tuple[int, ...]]
    shards: Mapping[str, tuple[int, int]]
    num_heads: int
    num_kv_heads: int
    parallel_residual: bool

    @property
    def num_layers(self) -> int:
        return len({name.split(".")[1] for name in self.shapes if name.startswith("layers.")})

    @property
    def grouped(self) -> bool:
        return self.num_kv_heads != self.num_heads


def is_neox(path: Path) -> bool:
    """Whether GPT-NeoX wrote the checkpoint in the directory `path`, or a converter in its format.

    A checkpoint of this trainer has a state of its own, which GPT-NeoX's has not.
    """
    if not path.is_dir() or any(path.glob("rng_rank_*.pt")):
        return False
    ranks = rank_files(path)
    if not ranks:
        return bool(layer_files(path))
    try:
        return "client_state" not in _load(ranks[0])
    except CheckpointError:
        return bool(layer_files(path))


def _load(file: Path) -> Any:
    """A file's contents, memory-mapped where its format allows it."""
    with refusing(f"{file} cannot be loaded", CheckpointError):
        mmap = zipfile.is_zipfile(file)
        engine = mmap and any(
            "deepspeed." in name for name in torch.serialization.get_unsafe_globals_in_checkpoint(file)
        )
    content = load_safely(file, mmap=mmap, numpy_arrays=True, deepspeed_classes=engine)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds no named values: it is no model file of a checkpoint")
    return content


def saved_iteration(path: Path) -> int:
    """Step that the checkpoint records; 0 if it records none."""
    ranks = rank_files(path)
    state = _load(ranks[0]) if ranks else {}
    step = state.get("iteration", state.get("global_steps", 0))
    return step if isinstance(step, int) else 0


def raw_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Iterate over (name, tensor) of every file, as stored: shards have their rank in the name."""
    files = _Files(path)
    for rank in range(files.tensor):
        suffix = f" (rank {rank})" if files.tensor > 1 else ""
        for layer in files.layers(rank):
            for name, tensor in files.layer(layer, rank).items():
                if isinstance(tensor, Tensor):
                    yield f"layer {layer:02d}: {name}{suffix}", tensor


class _Files:
    """The files of a checkpoint in either layout. Only the files of the layer that was read last stay mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_layer = layer_files(path)
        self.by_rank = [] if self.by_layer else rank_files(path)
        self._mapped: tuple[int | None, dict[int, Mapping[str, Any]]] = (None, {})
        ranks = {rank for _, rank in self.by_layer} or range(len(self.by_rank))
        self.tensor = len(ranks)
        if not self.tensor or set(ranks) != set(range(self.tensor)):
            raise CheckpointError(f"{path}: expected model files of tensor-parallel ranks from 0, got {sorted(ranks)}")

    def layers(self, rank: int) -> list[int]:
        """Numbers of the layers that have weights."""
        if self.by_layer:
            return sorted({layer for layer, of in self.by_layer if of == rank})
        names = (name.split(".") for name in self._module(rank))
        return sorted({int(parts[1]) for parts in names if parts[0] == "sequential" and parts[1].isdigit()})

    def layer(self, layer: int, rank: int) -> Mapping[str, Any]:
        """Parameters of one layer by name; empty if it has none."""
        if self._mapped[0] != layer:
            self._mapped = (layer, {})
        mapped = self._mapped[1]
        if rank not in mapped:
            if self.by_layer:
                file = self.by_layer.get((layer, rank))
                mapped[rank] = {} if file is None else _load(file)
            else:
                prefix = f"sequential.{layer}."
                module = self._module(rank)
                mapped[rank] = {k.removeprefix(prefix): x for k, x in module.items() if k.startswith(prefix)}
        return mapped[rank]

    def release(self) -> None:
        self._mapped = (None, {})

    def _module(self, rank: int) -> Mapping[str, Any]:
        file = self.by_rank[rank]
        module = _load(file).get("module")
        if not isinstance(module, Mapping) or not module:
            raise CheckpointError(f"{file} holds no parameters")
        if not any(x.numel() for x in module.values() if isinstance(x, Tensor)):
            raise CheckpointError(
                f"{file} holds no weights, because ZeRO 3 saved them in shards: merge them first with DeepSpeed's "
                "zero_to_fp32.py, or save with stage3_gather_16bit_weights_on_model_save"
            )
        return module


class NeoxCheckpoint:
    """Whole parameters of a checkpoint of GPT-NeoX, by our names, as tensors on the CPU.

    rows: unpadded rows of the vocabulary; None keeps all rows of the files. Raises CheckpointError if the directory
    holds no model files.
    """

    def __init__(self, path: Path, assembly: Assembly) -> None:
        self.path = path
        self.assembly = assembly
        self._files = _Files(path)
        self._layers = assembly.num_layers

    @property
    def tensor_parallel(self) -> int:
        return self._files.tensor

    def check_fit(self) -> None:
        """Raise CheckpointError with the missing, extra and misshaped tensors if the checkpoint is of another model."""
        wrong = [*self._misfits(), *self._extra()]
        if not wrong:
            return
        blocks = self._num_blocks()
        of = "" if blocks == self._layers else f" It has {blocks} blocks, and the configuration has {self._layers}."
        table = difference_table(wrong, ("name", "in the checkpoint", "in the configuration"))
        raise CheckpointError(f"{self.path} is a checkpoint of another model.{of} These tensors differ:\n{table}")

    def weight(self, name: str) -> Tensor:
        """A whole parameter, without the padding of the vocabulary. It can be mapped from the file."""
        parts = [self._part(name, rank) for rank in range(self._files.tensor)]
        if any(part is None for part in parts):
            raise CheckpointError(f"{self.path} has no tensor {name}")
        whole = self._merge(name, [part for part in parts if part is not None])
        return whole[: self.assembly.shapes[name][0]] if name in VOCABULARY else whole

    def release(self) -> None:
        """Close the files that are mapped. What was read stays valid, and keeps its own file mapped."""
        self._files.release()

    def padded_rows(self) -> int:
        """Rows of the embedding over all ranks."""
        name = VOCABULARY[0]
        return sum(part.shape[0] for rank in range(self._files.tensor) if (part := self._part(name, rank)) is not None)

    def _part(self, name: str, rank: int) -> Tensor | None:
        """The tensor of one rank; None if the checkpoint has none."""
        number, local = place(name, self._layers)
        stored = self._files.layer(number, rank)
        for key in spellings(local):
            if key in stored:
                part: Tensor = stored[key]
                return part
        if local == "mlp.dense_h_to_4h.weight" and all(key in stored for key in SPLIT_GATE):
            return torch.cat([stored[key] for key in SPLIT_GATE])
        return None

    def _merge(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        if name.endswith(("query_key_value.weight", "query_key_value.bias")) and self.assembly.grouped:
            return torch.cat([self._by_kv_head(part) for part in parts])
        if len(parts) == 1:
            return parts[0]
        spec = self.assembly.shards.get(name)
        if spec is not None:
            return unshard(parts, Shard(*spec))
        summed = torch.stack([part.float() for part in parts]).sum(0)
        if not (name.endswith(ROW_BIASES) and self.assembly.parallel_residual):
            summed /= len(parts)  # each rank holds all of it; GPT-NeoX's copies can drift apart
        return summed.to(parts[0].dtype)

    def _by_kv_head(self, part: Tensor) -> Tensor:
        """Order the rows of one rank by key-value head. GPT-NeoX stores all queries, then all keys, then all values."""
        queries = self.assembly.num_heads // self.assembly.num_kv_heads
        heads = self.assembly.num_kv_heads // self._files.tensor
        dim = part.shape[0] // (heads * (queries + 2))
        split = part.split([heads * queries * dim, heads * dim, heads * dim])
        return torch.cat([x.unflatten(0, (heads, -1)) for x in split], dim=1).flatten(0, 1)

    def _misfits(self) -> Iterator[Difference]:
        """Parameters of the model that are missing or have another shape."""
        for name, expected in self.assembly.shapes.items():
            parts = [self._part(name, rank) for rank in range(self._files.tensor)]
            found = [tuple(part.shape) for part in parts if part is not None]
            if len(found) < len(parts):
                yield Difference(name, ABSENT, list(expected))
                continue
            shape = self._global_shape(name, found)
            fits = shape == expected
            if name in VOCABULARY:
                fits = shape[0] >= expected[0] and shape[1:] == expected[1:]
            if not fits:
                yield Difference(name, list(shape), list(expected))

    def _global_shape(self, name: str, found: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        spec = self.assembly.shards.get(name)
        if spec is None:
            return found[0]
        shape = list(found[0])
        shape[spec[0]] = sum(part[spec[0]] for part in found)
        return tuple(shape)

    def _extra(self) -> Iterator[Difference]:
        """Tensors that belong to no parameter of the model."""
        known: dict[int, set[str]] = {}
        for name in self.assembly.shapes:
            number, local = place(name, self._layers)
            known.setdefault(number, set()).update(spellings(local))
            if local == "mlp.dense_h_to_4h.weight":
                known[number].update(SPLIT_GATE)
        tied = "readout.weight" not in self.assembly.shapes
        for number in self._files.layers(0):
            if tied and number == self._layers + 4:
                continue  # a copy of the embedding
            for key, tensor in self._files.layer(number, 0).items():
                if key not in known.get(number, ()) and isinstance(tensor, Tensor) and not is_buffer(key):
                    yield Difference(f"layer {number:02d}: {key}", list(tensor.shape), ABSENT)

    def _num_blocks(self) -> int:
        layers = (self._files.layer(number, 0) for number in self._files.layers(0))
        return sum(any(key in layer for key in spellings("attention.dense.weight")) for layer in layers)
