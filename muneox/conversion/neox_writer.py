"""Write whole weights as a checkpoint in GPT-NeoX's format, which GPT-NeoX and its tools read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpointing.neox import VOCABULARY
from megatron.checkpointing.neox_names import ROW_BIASES, place, written_name
from megatron.errors import CheckpointError
from megatron.files import write_whole
from megatron.model.build import ModelPlan
from megatron.mpu import Shard, shard
from megatron.training.model_from_config import neox_assembly
from muneox.conversion.resources import check_disk, check_memory
from muneox.conversion.tensors import Shape, split_qkv

Weight = Callable[[str], Tensor]
_COPIES = 3  # of a layer: whole, as shards, and in the writer


class NeoxFormat:
    """How the parameters of a model lie in GPT-NeoX's files.

    tensor: the tensor-parallel size. multiple: the vocabulary is padded with zeros to a multiple of `multiple` x
    `tensor`. Raises CheckpointError if the model cannot be split into `tensor` parts.
    """

    def __init__(self, plan: ModelPlan, *, tensor: int, multiple: int) -> None:
        self.config, self.assembly = plan.config, neox_assembly(plan)
        self.tensor, self.multiple = tensor, multiple * tensor
        assembly = self.assembly
        if assembly.num_kv_heads % tensor:
            raise CheckpointError(f"--tp: {assembly.num_kv_heads} key-value heads cannot be split into {tensor} parts")
        for name, (dim, blocks) in assembly.shards.items():
            if (length := self._padded(name)[dim]) % (blocks * tensor):
                raise CheckpointError(f"--tp: dimension {length} of {name} cannot be split into {tensor} parts")

    def _padded(self, name: str) -> Shape:
        shape = self.assembly.shapes[name]
        return (-(-shape[0] // self.multiple) * self.multiple, *shape[1:]) if name in VOCABULARY else shape

    def layers(self) -> Mapping[int, Mapping[str, str]]:
        """Number of each layer with weights -> our names of its parameters -> their names in the layer."""
        found: dict[int, dict[str, str]] = {}
        for name in self.assembly.shapes:
            number, local = place(name, self.assembly.num_layers)
            found.setdefault(number, {})[name] = written_name(local, self.config.norm)
        return dict(sorted(found.items()))

    def _size(self, dtype: torch.dtype) -> int:
        """Bytes of all weights on disk."""
        count = 0
        for name in self.assembly.shapes:
            copies = 1 if name in self.assembly.shards else self.tensor
            count += torch.Size(self._padded(name)).numel() * copies
        return count * dtype.itemsize

    def _memory(self, plain: bool) -> int:
        """Bytes that writing needs: for the largest layer, or for a whole rank if there is one file per rank."""
        layers = self.layers().values()
        sizes = [sum(torch.Size(self._padded(name)).numel() for name in layer) for layer in layers]
        return _COPIES * 4 * (max(sizes) if not plain else max(max(sizes), sum(sizes) // self.tensor))

    def parts(self, name: str, x: Tensor) -> Iterator[Tensor]:
        """The tensors of all ranks of the whole parameter `name`, each with storage of its own."""
        if name in VOCABULARY:
            rows = self._padded(name)[0] - x.shape[0]
            x = torch.cat([x, x.new_zeros(rows, *x.shape[1:])])
        spec = self.assembly.shards.get(name)
        grouped = "query_key_value" in name and self.assembly.grouped
        by_kind = split_qkv(x, self.config.widths) if grouped else None
        for rank in range(self.tensor):
            if by_kind is not None:  # each rank holds its queries, its keys, its values
                yield torch.cat([shard(kind, Shard(0), rank, self.tensor) for kind in by_kind])
            elif spec is not None:
                yield shard(x, Shard(*spec), rank, self.tensor).clone()
            elif name.endswith(ROW_BIASES) and self.assembly.parallel_residual:
                yield x / self.tensor  # the ranks are summed
            else:
                yield x.clone()

    def check_resources(self, folder: Path, dtype: torch.dtype, *, plain: bool) -> None:
        """Raise CheckpointError if the disk of `folder` or the memory does not suffice. plain: see `write_neox`."""
        check_disk(folder, self._size(dtype))
        check_memory(self._memory(plain), f"--output_dir {folder}: writing")


def write_neox(
    weight: Weight, release: Callable[[], None], form: NeoxFormat, folder: Path, dtype: torch.dtype, *, plain: bool
) -> None:
    """Write `latest` and a step directory to the existing `folder`.

    weight: whole parameters by our name. release: called after each layer. plain: one file per rank, as GPT-NeoX saves
    with pipe-parallel-size 0, instead of one file per layer and rank. Raises OSError.
    """
    step = folder / "global_step0"
    step.mkdir()
    if plain:
        for rank in range(form.tensor):
            module: dict[str, Tensor] = {}
            for number, layer in _layers(weight, release, form, dtype):
                module |= {f"sequential.{number}.{name}": parts[rank] for name, parts in layer.items()}
            torch.save(_header(module, form.tensor), step / f"mp_rank_{rank:02d}_model_states.pt")
    else:
        for number, layer in _layers(weight, release, form, dtype):
            _save_layer(step, number, layer, form.tensor)
            if number == 0 and "readout.weight" not in form.assembly.shapes:  # the last stage has a copy
                _save_layer(step, form.assembly.num_layers + 4, layer, form.tensor)
        for rank in range(form.tensor):
            torch.save(_header(None, form.tensor), step / f"mp_rank_{rank:02d}_model_states.pt")
    write_whole(folder / "latest", step.name)


def _layers(
    weight: Weight, release: Callable[[], None], form: NeoxFormat, dtype: torch.dtype
) -> Iterator[tuple[int, dict[str, list[Tensor]]]]:
    """The layers by number: for each parameter, by its name there, the tensors of all ranks."""
    for number, names in form.layers().items():
        yield number, {local: list(form.parts(ours, weight(ours).to(dtype))) for ours, local in names.items()}
        release()


def _save_layer(step: Path, number: int, layer: Mapping[str, list[Tensor]], ranks: int) -> None:
    for rank in range(ranks):
        mine = {name: parts[rank] for name, parts in layer.items()}
        torch.save(mine, step / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")


def _header(module: Mapping[str, Tensor] | None, tensor: int) -> dict[str, Any]:
    """The part of an engine's state that DeepSpeed needs to load weights."""
    return {
        "module": module,
        "optimizer": None,
        "lr_scheduler": None,
        "dp_world_size": 1,
        "mp_world_size": tensor,
        "global_steps": 0,
        "global_samples": 0,
        "skipped_steps": 0,
        "iteration": 0,
    }
