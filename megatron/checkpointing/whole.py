"""Read whole parameters from a checkpoint that was saved under any layout of processes.

The shards are read directly. DeepSpeed's universal checkpoint is not used: it needs a conversion of the whole
checkpoint on disk, runs code from the files that it reads, and supports neither plain fp32 training nor the change of
parameter names in a pipeline. Files are memory-mapped, so only the requested tensors are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpointing.integrity import load_safely
from megatron.errors import CheckpointError, refusing
from megatron.mpu import Shard, unshard

_MODEL = "model_states.pt"
_MAX_RANKS = 1 << 20


@dataclass(frozen=True)
class Layout:
    """Layout of a checkpoint's files, recorded when it is saved (`client_state["layout"]`).

    layers: names of the layers, in order.
    bounds: pipeline stage i holds layers [bounds[i], bounds[i + 1]).
    shapes: unpadded global shapes by parameter name.
    shards: name -> (dim, blocks) of the parameters that tensor parallelism splits.
    padded_vocab_size: rows of the embedding over all tensor-parallel ranks; 0 if the checkpoint does not record it.
    """

    tensor: int
    pipe: int
    data: int
    zero_stage: int
    precision: str
    layers: tuple[str, ...]
    bounds: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]
    shards: Mapping[str, tuple[int, int]]
    padded_vocab_size: int

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> Layout:
        """Create a layout from the plain values in a file. Raises CheckpointError if values are missing."""
        try:
            sizes = {key: int(section[key]) for key in ("tensor", "pipe", "data", "zero_stage")}
            layout = cls(
                **sizes,
                precision=str(section["precision"]),
                layers=tuple(section["layers"]),
                bounds=tuple(section["bounds"]),
                shapes={name: tuple(shape) for name, shape in section["shapes"].items()},
                shards={name: (int(dim), int(blocks)) for name, (dim, blocks) in section["shards"].items()},
                padded_vocab_size=int(section.get("padded_vocab_size", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"the layout section of the checkpoint is incomplete: {error!r}") from None
        ranks = (layout.tensor, layout.pipe, layout.data)
        if not all(1 <= size <= _MAX_RANKS for size in ranks) or not all(
            isinstance(size, int)
            for size in (*layout.bounds, *(size for shape in layout.shapes.values() for size in shape))
        ):
            raise CheckpointError(f"the layout section of the checkpoint has impossible sizes: {ranks}")
        return layout

    def section(self) -> dict[str, Any]:
        """Return the layout as plain values."""
        shards = {name: list(spec) for name, spec in self.shards.items()}
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        plain = {"layers": list(self.layers), "bounds": list(self.bounds), "shapes": shapes, "shards": shards}
        sizes = {"tensor": self.tensor, "pipe": self.pipe, "data": self.data, "zero_stage": self.zero_stage}
        return {**sizes, "precision": self.precision, "padded_vocab_size": self.padded_vocab_size, **plain}

    @property
    def same_files(self) -> tuple[int | str, ...]:
        """A key that is equal for two layouts if DeepSpeed can load the files of one into the other."""
        data = self.data if self.zero_stage else 0
        return (self.tensor, self.pipe, data, self.zero_stage, self.precision, self.padded_vocab_size, *self.bounds)

    def describe(self) -> str:
        """Return a short description."""
        sizes = f"TP {self.tensor} x PP {self.pipe} x DP {self.data}"
        padded = f", vocabulary padded to {self.padded_vocab_size:,}" if self.padded_vocab_size else ""
        return f"{sizes}, ZeRO {self.zero_stage}, {self.precision}{padded}"

    def global_name(self, local: str) -> str:
        """Layout-independent name of a parameter, given its name in a pipeline stage."""
        if self.pipe == 1:
            return local
        head, _, rest = local.removeprefix("tied_modules.").partition(".")
        return f"{self.layers[int(head)] if head.isdigit() else head}.{rest}"


@dataclass(frozen=True)
class ParameterState:
    """A whole parameter in the optimizer's precision, its moments by torch's names, and the number of updates."""

    weight: Tensor
    moments: Mapping[str, Tensor]
    step: float


@dataclass(frozen=True)
class _Piece:
    """Part of a flattened local parameter: elements [start, start + numel) of a flat group of one rank."""

    rank: int
    group: int
    start: int
    numel: int


class _Flat:
    """The ZeRO shards of one model-parallel rank's optimizer, over its data-parallel ranks."""

    def __init__(self, files: Sequence[Path], layout: Layout, shapes: Sequence[Mapping[str, Sequence[int]]]) -> None:
        self.shards = [load_safely(file, mmap=True, deepspeed_classes=True)["optimizer_state_dict"] for file in files]
        self.stage3 = layout.zero_stage == 3
        self.layout = layout
        self.pieces: dict[str, list[_Piece]] = {}
        if self.stage3:
            self._index_stage_3(shapes)
        else:
            self._index_stage_1_and_2()

    def _index_stage_1_and_2(self) -> None:
        for rank, shard in enumerate(self.shards):
            for group, mapping in enumerate(shard["param_slice_mappings"]):
                for local, fragment in mapping.items():
                    piece = _Piece(rank, group, fragment.start, fragment.numel)
                    self.pieces.setdefault(self.layout.global_name(local), []).append(piece)

    def _index_stage_3(self, shapes: Sequence[Mapping[str, Sequence[int]]]) -> None:
        """Index the pieces: every parameter is split evenly over all ranks, and no parameter spans two flat groups."""
        lengths = [len(flat) for flat in self.shards[0]["fp32_flat_groups"]]
        group, start = 0, 0
        for name, shape in ((name, shape) for mapping in shapes for name, shape in mapping.items()):
            numel = -(-torch.Size(shape).numel() // len(self.shards))
            if start >= lengths[group]:
                group, start = group + 1, 0
            self.pieces[name] = [_Piece(rank, group, start, numel) for rank in range(len(self.shards))]
            start += numel

    def _tensors(self, rank: int, group: int) -> tuple[Tensor, Mapping[str, Any]]:
        shard = self.shards[rank]
        if self.stage3:
            return shard["fp32_flat_groups"][group], shard["optimizer_state_dict"]["state"].get(group, {})
        return shard["single_partition_of_fp32_groups"][group], shard["base_optimizer_state"]["state"].get(group, {})

    def state(self, name: str, shape: tuple[int, ...]) -> ParameterState:
        """State of a local parameter of the given local shape."""
        parts: dict[str, list[Tensor]] = {}
        step = 0.0
        for piece in self.pieces[name]:
            flat, state = self._tensors(piece.rank, piece.group)
            moments = {key: x for key, x in state.items() if isinstance(x, Tensor) and x.ndim == 1}
            step = float(state.get("step", 0.0))
            for key, x in {"weight": flat, **moments}.items():
                parts.setdefault(key, []).append(x[piece.start : piece.start + piece.numel])
        numel = torch.Size(shape).numel()
        whole = {key: torch.cat(pieces)[:numel].view(shape) for key, pieces in parts.items()}
        return ParameterState(whole.pop("weight"), whole, step)


class WholeCheckpoint:
    """Whole parameters of a verified checkpoint directory, as tensors on the CPU without vocabulary padding."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        section = header["client_state"].get("layout")
        if section is None:
            raise CheckpointError(f"{path} does not record its layout: load it under the layout that saved it")
        self.path = path
        self.layout = Layout.from_section(section)
        self._cache: dict[Any, Any] = {}

    @property
    def names(self) -> list[str]:
        return list(self.layout.shapes)

    def release(self) -> None:
        """Close the files that are mapped. What was read stays valid, and keeps its own file mapped."""
        self._cache.clear()

    def weight(self, name: str) -> Tensor:
        """The weight in the precision of the model (fp32 if the checkpoint was saved under ZeRO 3)."""
        if self.layout.zero_stage == 3:
            return self.state(name).weight
        with self._reading(name):
            return self._joined(name, [self._model_weights(t, name)[name] for t in range(self.layout.tensor)])

    def state(self, name: str) -> ParameterState:
        """The weight and moments of the optimizer. Raises CheckpointError if the checkpoint has none."""
        with self._reading(name):
            parts = [self._local_state(tensor, name) for tensor in range(self.layout.tensor)]
            moments = {key: self._joined(name, [part.moments[key] for part in parts]) for key in parts[0].moments}
            return ParameterState(self._joined(name, [part.weight for part in parts]), moments, parts[0].step)

    def _reading(self, name: str) -> AbstractContextManager[None]:
        """Convert what malformed files raise to a CheckpointError that names the parameter."""
        return refusing(
            f"{self.path}: {name} cannot be read: its files do not fit the recorded layout", CheckpointError
        )

    def _joined(self, name: str, parts: list[Tensor]) -> Tensor:
        spec = self.layout.shards.get(name)
        whole = parts[0] if spec is None else unshard(parts, Shard(*spec))
        shape = self.layout.shapes[name]
        whole = whole[: shape[0]]
        if whole.shape != shape:
            raise CheckpointError(f"{self.path}: {name} has shape {list(whole.shape)}, expected {list(shape)}")
        return whole

    def _layer(self, name: str) -> int:
        """Index of the layer that a parameter belongs to."""
        return next(i for i, layer in enumerate(self.layout.layers) if name.startswith(f"{layer}."))

    def _stage(self, name: str) -> int:
        if self.layout.pipe == 1:
            return 0
        index = self._layer(name)
        return next(s for s in range(self.layout.pipe) if index < self.layout.bounds[s + 1])

    def _model_weights(self, tensor: int, name: str) -> Mapping[str, Tensor]:
        """Weights by global name, from the file that holds `name`."""
        if self.layout.pipe == 1:
            weights: Mapping[str, Tensor] = self._model_states(tensor)["module"]
            return weights
        layer = self._layer(name)
        file = self.path / f"layer_{layer:02d}-model_{tensor:02d}-{_MODEL}"
        states = self._load(file)
        return {f"{self.layout.layers[layer]}.{local}": x for local, x in states.items()}

    def _model_states(self, model_rank: int) -> Mapping[str, Any]:
        plain = self.path / f"mp_rank_{model_rank:02d}_{_MODEL}"
        cut = self.path / f"zero_pp_rank_0_mp_rank_{model_rank:02d}_{_MODEL}"
        states: Mapping[str, Any] = self._load(plain if plain.exists() else cut)
        return states

    def _load(self, file: Path) -> Any:
        if file not in self._cache:
            self._cache[file] = load_safely(file, mmap=True)
        return self._cache[file]

    def _local_state(self, tensor: int, name: str) -> ParameterState:
        model_rank = self._stage(name) * self.layout.tensor + tensor
        optimizer = self._model_states(model_rank)["optimizer"]
        if optimizer is None:
            return self._flat(model_rank).state(name, self._local_shape(tensor, name))
        index = _plain_index(optimizer)
        if name not in index:
            raise CheckpointError(f"{self.path} holds no optimizer state of {name}: load only the weights")
        state = optimizer["state"].get(index[name], {})
        moments = {key: x for key, x in state.items() if isinstance(x, Tensor) and x.ndim > 0}
        weight = self._model_weights(tensor, name)[name]
        return ParameterState(weight, moments, float(state.get("step", 0.0)))

    def _flat(self, model_rank: int) -> _Flat:
        key = ("flat", model_rank)
        if key not in self._cache:
            prefixes = ("bf16_zero", "zero")
            for prefix in prefixes:
                pattern = f"{prefix}_pp_rank_{{}}_mp_rank_{model_rank:02d}_optim_states.pt"
                files = [self.path / pattern.format(rank) for rank in range(self.layout.data)]
                if files[0].exists():
                    break
            shapes = self._model_states(model_rank).get("param_shapes") or []
            self._cache[key] = _Flat(files, self.layout, shapes)
        flat: _Flat = self._cache[key]
        return flat

    def _local_shape(self, tensor: int, name: str) -> tuple[int, ...]:
        if self.layout.zero_stage == 3:
            shapes = self._model_states(tensor)["param_shapes"]
            return next(tuple(mapping[name]) for mapping in shapes if name in mapping)
        return tuple(self._model_weights(tensor, name)[name].shape)

    def states(self) -> Iterator[tuple[str, ParameterState]]:
        """Iterate over (name, state) of every parameter."""
        return ((name, self.state(name)) for name in self.names)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """All weights by name."""
        return {name: self.weight(name) for name in self.names}


def _plain_index(optimizer: Mapping[str, Any]) -> dict[str, int]:
    """Global name -> index in a torch optimizer's state, read from the names in the parameter groups."""
    return {
        name: index
        for group in optimizer.get("param_groups", [])
        for name, index in zip(group.get("parameter_names", []), group["params"])
    }
