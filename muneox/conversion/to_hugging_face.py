"""Write a checkpoint as a model of Hugging Face's transformers: config.json and .safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron.files import write_whole
from muneox.conversion.families import Family, hugging_face_config
from muneox.conversion.folding import Folding
from muneox.conversion.resources import check_disk, check_memory
from muneox.conversion.safetensors_file import SHARD_SIZE, SafetensorsWriter, num_bytes
from muneox.conversion.source import Source
from muneox.conversion.tensors import Shape

_COPIES = 4  # of the largest parameter: as stored, merged, in fp32, and converted
_SMALL_FILES = 2**24  # bytes for configuration and tokenizer


def export_shapes(source: Source, family: Family) -> dict[str, Shape]:
    """Shapes of all tensors of the model by name, in the order of the files."""
    shapes: dict[str, Shape] = {}
    for group in family.groups(source.plan.config):
        shapes |= group.shapes(source.shapes[group.ours])
    return shapes | dict(family.zeros(source.plan.config))


def check_resources(shapes: Mapping[str, Shape], source: Source, dtype: torch.dtype, folder: Path) -> None:
    """Raise CheckpointError if the disk or the memory does not suffice."""
    check_disk(folder, sum(num_bytes(shape, dtype) for shape in shapes.values()) + _SMALL_FILES)
    largest = max(torch.Size(shape).numel() for shape in source.shapes.values())
    check_memory(_COPIES * largest * torch.float32.itemsize, f"{source.path}: the largest parameter")


def write_model(
    source: Source,
    family: Family,
    folder: Path,
    dtype: torch.dtype,
    *,
    end_token: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> Folding:
    """Write the model to the existing `folder`, and return the folding of its multipliers.

    One parameter at a time is in memory. shard_size: of a file in bytes. Raises CheckpointError and OSError.
    """
    config, factors = source.plan.config, source.plan.factors
    folding = Folding(config, factors, family.factors(config, factors))
    settings = hugging_face_config(family, config, factors, str(dtype).removeprefix("torch."), end_token)
    write_whole(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    layer = ""
    with SafetensorsWriter(folder, export_shapes(source, family), dtype, shard_size) as writer:
        for group in family.groups(config):
            if (now := group.ours.rpartition(".")[0]) != layer:
                layer = now
                source.weights.release()
            parts = group.split(folding(group.ours, source.weights.weight(group.ours)))
            for name, part in zip(group.theirs, parts, strict=True):
                writer.add(name, part)
        for name, shape in family.zeros(config).items():
            writer.add(name, torch.zeros(shape, dtype=dtype))
    return folding
