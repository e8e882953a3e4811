"""Coordinates of a GPT for the coordinate check: kinds of modules, attention logits, the readout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megatron.model.attention import CoreAttention
from megatron.model.embedding import Readout
from megatron.model.moe import Router
from megatron.training.objective import Batch
from megatron.training.train_module import TrainModule
from mup.records import Coordinates, Sizes

ATTENTION_LOGITS = "attention.logits"


def _kind(name: str) -> str:
    """Kind of a module: its name without the index of the block. A block itself is `block`."""
    return re.sub(r"^layers\.\d+(\.|$)", "", name) or "block"


FUSED = "attention.query_key_value"


def _inside_attention(name: str, module: nn.Module, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys, values and attention logits: scale * q k^T of visible keys, otherwise 0, [b, heads, s, s].

    Queries, keys and values are measured separately, because their shares of the fused projection change with the
    width if the number of key-value heads is fixed.
    """
    if isinstance(module, CoreAttention):
        q, k, v = inputs
        for kind, x in (("query", q), ("key", k), ("value", v)):
            yield name.replace("attention.core", f"attention.{kind}"), x.detach().float()
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        logits = (module.scale * q.float() @ k.float().transpose(-1, -2)).tril()
        mask = module.mask(q.shape[-2], k.shape[-2], q)
        if mask is not None:
            logits = logits.masked_fill(mask.isneginf(), 0.0)
        yield name.replace("attention.core", ATTENTION_LOGITS), logits.detach()


def _pool_over_processes(own: Sizes) -> Sizes:
    """Merge the tables of all processes: tensor-parallel ranks hold equal parts of a tensor, stages other blocks."""
    tables: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(tables, own)
    pooled: Sizes = {}
    for table in tables:
        for kind, (total, number, may_vanish) in table.items():
            before = pooled.get(kind, (0.0, 0, False))
            pooled[kind] = (before[0] + total, before[1] + number, before[2] or may_vanish)
    return pooled


def _shrinking(module: TrainModule) -> set[str]:
    """Kinds whose random weights map a width to a finite dimension: a tied readout, and keys of fixed heads."""
    plan, name = module.plan, "layers.0.attention.query_key_value.weight"
    smaller = {part.name for part, factor in plan.parameters[name].parts if 0.0 < factor < 1.0}
    keys = {"attention.key"} if "key" in smaller else set()
    return keys | ({"readout"} if plan.config.tied_readout else set())


def gpt_coordinates(module: TrainModule, batch: Batch) -> Coordinates:
    """Coordinates of a model under any layout, in evaluation mode on one fixed batch. All blocks are of one kind."""
    model = module.model
    return Coordinates(
        model,
        lambda: module.evaluate(iter([batch]), 1),
        # all modules except the model itself, whose output is that of the readout
        keep=lambda name: bool(name) and not name.endswith(FUSED),
        kind=lambda name: _kind(model.global_name(name)),
        extra=_inside_attention,
        outputs=lambda module: isinstance(module, Readout | Router),
        shrinks=_shrinking(module),
        pool=_pool_over_processes,
    )
