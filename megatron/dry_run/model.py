"""Build every rank's part of the model on the meta device, count its parameters and check their multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from megatron.dry_run.layers import LayerCost, measure
from megatron.errors import ConfigError
from megatron.model.build import ModelPlan
from megatron.model.embedding import Embedding
from megatron.model.gpt import layer_list, make_embedding
from megatron.model.stages import stage_bounds
from megatron.mpu import ProcessGroups, TensorParallel, global_shape, shard_of, vocab_parallel_cross_entropy
from megatron.mpu.topology import Grid
from mup.infshape import zip_infshape
from mup.roles import describe


@dataclass(frozen=True)
class RankPart:
    """Layers and numbers of parameters of one (pipeline stage, tensor-parallel rank).

    sharded: parameters split over the tensor-parallel ranks. replicated: parameters that each of these ranks holds.
    tied_copies: sharded parameters that another stage owns.
    """

    pipe: int
    tensor: int
    layers: tuple[str, ...]
    sharded: int
    replicated: int
    tied_copies: int

    @property
    def parameters(self) -> int:
        return self.sharded + self.replicated + self.tied_copies


def total_parameters(parts: Sequence[RankPart]) -> int:
    """Number of parameters of the whole model including vocabulary padding. Each parameter counts once."""
    return sum(part.sharded + (part.replicated if part.tensor == 0 else 0) for part in parts)


def bounds_of(plan: ModelPlan, stages: int, method: str) -> list[int]:
    """Bounds of the pipeline stages in the list of layers."""
    layers = [name for name, _ in layer_list(plan.config, plan.factors)]
    if stages == 1:
        return [0, len(layers)]
    return stage_bounds(layers, {name: p.shape for name, p in plan.parameters.items()}, stages, method)


def build_parts(plan: ModelPlan, grid: Grid, bounds: Sequence[int], sequence_parallel: bool) -> list[RankPart]:
    """Build and check every part. Data-parallel ranks hold equal parts, so only one of them is built."""
    parts = []
    for pipe in range(grid.pipe):
        for tensor in range(grid.tensor):
            groups = ProcessGroups.described(grid, grid.rank(pipe=pipe, tensor=tensor))
            parts.append(_build_part(plan, groups, bounds, sequence_parallel))
    return parts


def _build_part(plan: ModelPlan, groups: ProcessGroups, bounds: Sequence[int], sequence_parallel: bool) -> RankPart:
    tp = TensorParallel(groups.tensor, sequence_parallel)
    stage = groups.coordinate.pipe
    named = layer_list(plan.config, plan.factors, tp)[bounds[stage] : bounds[stage + 1]]
    counts = {True: 0, False: 0}  # keyed by whether the parameter is sharded
    copies = 0
    with torch.device("meta"):
        for name, factory in named:
            for local, parameter in factory().named_parameters():
                _check(plan, f"{name}.{local}", parameter, groups)
                counts[shard_of(parameter) is not None] += parameter.numel()
        names = [name for name, _ in named]
        if plan.config.tied_readout and "readout" in names and "embedding" not in names:
            table = make_embedding(plan.config, plan.factors, tp, positions=False).word_embeddings.weight
            _check(plan, "embedding.word_embeddings.weight", table, groups)
            copies = table.numel()
    return RankPart(stage, groups.coordinate.tensor, tuple(names), counts[True], counts[False], copies)


def _check(plan: ModelPlan, name: str, parameter: torch.nn.Parameter, groups: ProcessGroups) -> None:
    """Check that this rank's shard implies the shape and the width multiplier of the whole model."""
    planned, spec = plan.parameters[name], shard_of(parameter)
    shape = tuple(parameter.shape) if spec is None else global_shape(parameter.shape, spec, groups.tensor.size)
    padding = plan.config.padded_vocab_size - plan.config.vocab_size
    expected = planned.shape
    if shape != expected:
        shape = (shape[0] - padding, *shape[1:])  # rows beyond the vocabulary
    _, fan_in_mult, _, _ = describe(zip_infshape(planned.infshape, shape))
    if shape != expected or fan_in_mult != planned.fan_in_mult:
        raise ConfigError(
            f"rank {groups.rank} holds {tuple(parameter.shape)} of {name}, which gives {shape} over "
            f"{groups.tensor.size} tensor-parallel ranks, but the model has {expected}: a width multiplier of "
            f"{fan_in_mult:g} instead of {planned.fan_in_mult:g}"
        )


def layer_costs(
    plan: ModelPlan, grid: Grid, microbatch: int, dtype: torch.dtype, sequence_parallel: bool
) -> dict[str, LayerCost]:
    """Costs by name of the layer; those of the readout include the loss. Equal blocks are measured once.

    Experts are measured with equal shares of the tokens.
    """
    config = plan.config
    tp = TensorParallel(ProcessGroups.described(grid, 0).tensor, sequence_parallel)
    layers = dict(layer_list(config, plan.factors, tp))
    length = config.seq_length // tp.group.size if tp.cuts_sequence else config.seq_length
    with torch.device("meta"):
        tokens = torch.empty(microbatch, config.seq_length, dtype=torch.long)
        hidden = torch.empty(microbatch, length, config.widths.hidden_size, dtype=dtype)
        embedding = cast(Embedding, layers["embedding"]().to(dtype))
        costs = {"embedding": measure(embedding, tokens)}
        of_kind: dict[bool, LayerCost] = {}  # keyed by whether the block has experts
        for i in range(config.widths.num_layers):
            kind, name = config.experts is not None and config.experts.in_block(i), f"layers.{i}"
            if kind not in of_kind:
                of_kind[kind] = measure(layers[name]().to(dtype), hidden.detach())
            costs[name] = of_kind[kind]
        costs["final_norm"] = measure(layers["final_norm"]().to(dtype), hidden.detach())
        readout = layers["readout"]().to(dtype)
        weight = embedding.word_embeddings.weight.detach() if config.tied_readout else None

        def loss(readout: nn.Module, x: torch.Tensor) -> torch.Tensor:
            logits = readout(x, weight)
            return vocab_parallel_cross_entropy(logits, tokens, tp.group, vocab_size=config.vocab_size).mean()

        costs["readout"] = measure(readout, hidden.detach(), loss)
    return costs
