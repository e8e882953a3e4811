"""What a coordinate check measures of a GPT: the kinds of its modules, its attention logits, its readout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megatron.model.attention import CoreAttention
from megatron.model.embedding import Readout
from megatron.training.objective import Batch
from megatron.training.train_module import TrainModule
from mup.records import Coordinates, Sizes

ATTENTION_LOGITS = "attention.logits"


def _kind(name: str) -> str:
    """Module type: the name without the block's index; a block itself is `block`."""
    return re.sub(r"^layers\.\d+(\.|$)", "", name) or "block"


FUSED = "attention.query_key_value"


def _inside_attention(name: str, module: nn.Module, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values, and scale * q k^T where the causal mask allows, 0 elsewhere: [b, heads, s, s].

    One by one: the share of each in the fused projection changes with the width where key-value heads are fixed.
    """
    if isinstance(module, CoreAttention):
        q, k, v = inputs
        for kind, x in (("query", q), ("key", k), ("value", v)):
            yield name.replace("attention.core", f"attention.{kind}"), x.detach().float()
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        logits = (module.scale * q.float() @ k.float().transpose(-1, -2)).tril()
        yield name.replace("attention.core", ATTENTION_LOGITS), logits.detach()


def _pool_over_processes(own: Sizes) -> Sizes:
    """One table of all processes: tensor-parallel ranks hold equal parts of a tensor, stages other blocks."""
    tables: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(tables, own)
    pooled: Sizes = {}
    for table in tables:
        for kind, (total, number, may_vanish) in table.items():
            before = pooled.get(kind, (0.0, 0, False))
            pooled[kind] = (before[0] + total, before[1] + number, before[2] or may_vanish)
    return pooled


def gpt_coordinates(module: TrainModule, batch: Batch) -> Coordinates:
    """Coordinates of a model under any layout, in evaluation mode on one fixed batch; blocks are one module type."""
    model = module.model
    return Coordinates(
        model,
        lambda: module.evaluate(iter([batch]), 1),
        # all but the model itself, whose output is the readout's
        keep=lambda name: bool(name) and not name.endswith(FUSED),
        kind=lambda name: _kind(model.global_name(name)),
        extra=_inside_attention,
        outputs=lambda module: isinstance(module, Readout),
        pool=_pool_over_processes,
    )
