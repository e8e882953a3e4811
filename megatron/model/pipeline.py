"""The GPT model split into pipeline stages, for DeepSpeed's pipeline engine."""

# mypy: allow-subclassing-any
# DeepSpeed's classes carry no types.

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.model.build import ModelPlan
from megatron.model.embedding import Embedding, Readout
from megatron.model.gpt import LayerFactory, layer_list, make_embedding
from megatron.model.stages import stage_bounds
from megatron.mpu import ProcessGroups, TensorParallel
from megatron.parametrization.init import initialise

_TIED = "embedding"  # key of the module shared by the first and the last stage


class _Layer(LayerSpec):
    """A layer that the stage that owns it builds by calling `factory`."""

    def __init__(self, factory: LayerFactory) -> None:
        super().__init__(nn.Module)
        self.factory = factory

    def build(self, log: bool = False) -> nn.Module:
        return self.factory()


class _TiedLayer(TiedLayerSpec):
    """Like `_Layer`, for the embedding: the stage with a tied readout has a copy of it."""

    def __init__(self, factory: LayerFactory, forward_fn: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__(_TIED, nn.Module, forward_fn=forward_fn, tied_weight_attr="word_embeddings.weight")
        self.factory = factory

    def build(self, log: bool = False) -> nn.Module:
        return self.factory()


def _tied_logits(readout: Readout, embedding: Embedding, x: Tensor) -> Tensor:
    logits: Tensor = readout(x, embedding.word_embeddings.weight)
    return logits


class PipelinedGPT(PipelineModule):
    """The pipeline stage of this process. The first stage takes int64 tokens [b, s], the last returns the loss."""

    def __init__(
        self,
        plan: ModelPlan,
        groups: ProcessGroups,
        tp: TensorParallel,
        partition_method: str,
        loss_fn: Callable[[Tensor, Any], Tensor],
    ) -> None:
        config, grid = plan.config, groups.grid
        named = layer_list(config, plan.factors, tp)
        self.layer_names = [name for name, _ in named]
        shapes = {name: parameter.shape for name, parameter in plan.parameters.items()}
        self._bounds = stage_bounds(self.layer_names, shapes, grid.pipe, partition_method)
        specs: list[LayerSpec] = [_Layer(factory) for _, factory in named]
        readout = None
        if config.tied_readout:
            readout = cast(Readout, named[-1][1]())  # a tied readout has no weight
            specs[0] = _TiedLayer(named[0][1])
            token_table = partial(make_embedding, config, plan.factors, tp, positions=False)
            specs[-1] = _TiedLayer(token_table, partial(_tied_logits, readout))
        topology = PipeModelDataParallelTopology(num_pp=grid.pipe, num_mp=grid.tensor, num_dp=grid.data)
        # DeepSpeed prints its settings, and broadcasts tied weights in a way that autograd would record
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            super().__init__(
                specs,
                topology=topology,
                loss_fn=loss_fn,
                activation_checkpoint_interval=config.checkpoint_every,
                activation_checkpoint_func=partial(checkpoint, use_reentrant=False),
            )
        if readout is not None and self.parts[self.stage_id + 1] == len(specs):
            self.add_module("readout", readout)  # hooks find it by name

    def _partition_layers(self, method: str = "") -> None:
        """Use the bounds that are known without processes. PipelineModule calls this method."""
        self.parts = self._bounds
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(self.parts[stage], self.parts[stage + 1])

    def global_name(self, local: str) -> str:
        """Layout-independent name of a parameter or module: `2.mlp` is `layers.1.mlp`."""
        head, _, rest = local.removeprefix("tied_modules.").partition(".")
        layer = self.layer_names[int(head)] if head.isdigit() else head
        return f"{layer}.{rest}" if rest else layer

    def global_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over (global name, parameter) of this stage."""
        return ((self.global_name(name), parameter) for name, parameter in self.named_parameters())


def materialise_stage(
    plan: ModelPlan,
    seed: int,
    groups: ProcessGroups,
    tp: TensorParallel,
    partition_method: str,
    loss_fn: Callable[[Tensor, Any], Tensor],
) -> PipelinedGPT:
    """Build the stage of this process with initial weights in fp32, which are bit-equal under every layout."""
    stage = PipelinedGPT(plan, groups, tp, partition_method, loss_fn)
    with torch.no_grad():
        initialise(stage.global_named_parameters(), plan.parameters, seed, tp.group)
    return stage
