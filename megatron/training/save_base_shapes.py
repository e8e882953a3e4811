"""`save-base-shapes: true`: write one base-shape file per rank from models on the meta device, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from megatron.initialize import Runtime
from megatron.model.build import shapes_at
from megatron.model.config import GPTConfig
from megatron.model.gpt import layer_list
from megatron.model.stages import layer_of, stage_bounds, stage_parameters
from megatron.neox_arguments.job_configs import SaveBaseShapesConfig
from megatron.parametrization.base_shapes import save_base_shapes
from megatron.parametrization.plan import Shape
from megatron.parametrization.widths import ForwardFactors
from megatron.tokenizer import build_tokenizer
from megatron.training.model_from_config import gpt_config

_ANY = ForwardFactors(1.0, 1.0, 1.0, 1.0)  # shapes do not depend on them


def _owned_names(
    config: GPTConfig, base_shapes: Mapping[str, Shape], stages: int, stage: int, method: str
) -> list[str]:
    """Names in the base model of the parameters that a pipeline stage of the configured model holds.

    If the base is deeper, its additional blocks belong to the last stage.
    """
    layers = [name for name, _ in layer_list(config, _ANY)]
    bounds = stage_bounds(layers, shapes_at(config, config.widths, _ANY), stages, method)
    held = layers[bounds[stage] : bounds[stage + 1]]
    if stage == stages - 1:
        held += [layer for layer in map(layer_of, base_shapes) if layer not in layers]
    return stage_parameters(list(base_shapes), held, config.tied_readout)


def run_save_base_shapes(config: SaveBaseShapesConfig, runtime: Runtime) -> Path:
    """Write `<base-shapes-file>.<rank>` and return its path.

    The mup-base-* keys define the base. Without them the base is the configured model. The delta model distinguishes
    widths from finite dimensions: it is `mup-width-scale` times as wide with the same number of heads. Dimensions are
    global. A rank writes the parameters of its pipeline stage.
    """
    tokenizer = build_tokenizer(*config.tokenizer)
    model, base = config.model, config.model.parametrization.base
    gpt = gpt_config(model, model.widths, tokenizer.vocab_size)
    delta = dataclasses.replace(
        base,
        hidden_size=base.hidden_size * config.width_scale,
        ffn_hidden_size=base.ffn_hidden_size * config.width_scale,
    )
    shapes, delta_shapes = shapes_at(gpt, base, _ANY), shapes_at(gpt, delta, _ANY)
    grid, place = runtime.groups.grid, runtime.groups.coordinate
    if grid.pipe > 1:
        owned = _owned_names(gpt, shapes, grid.pipe, place.pipe, config.layout.partition_method)
        shapes = {name: shapes[name] for name in owned}
    if runtime.is_first:
        _remove_stale(config.prefix, runtime.world_size)
    file = Path(f"{config.prefix}.{runtime.rank}")
    layout = f"rank {runtime.rank} of {runtime.world_size}, tensor {grid.tensor}, pipe {grid.pipe}, data {grid.data}"
    save_base_shapes(file, shapes, delta_shapes, base, layout)
    runtime.barrier()
    return file


def _remove_stale(prefix: Path, world_size: int) -> None:
    """Remove files of an earlier save with more ranks, which would be read as a part of this one."""
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        if path.suffix[1:].isdigit() and int(path.suffix[1:]) >= world_size:
            path.unlink()
