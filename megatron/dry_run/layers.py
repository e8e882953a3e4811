"""What one layer keeps and sends for one microbatch, measured by running it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from megatron.model.attention import CoreAttention
from megatron.mpu import CommunicationCounts, count_communication


@dataclass(frozen=True)
class LayerCost:
    """saved_bytes: activations kept for the backward pass. output_bytes: of what goes to the next layer.

    forward, backward: tensor-parallel collectives of this rank.
    """

    saved_bytes: int
    output_bytes: int
    forward: CommunicationCounts
    backward: CommunicationCounts


class _FlashFootprint(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: q, k, v, the output and one number a row; computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _FusedAttention(nn.Module):
    """Stands for CoreAttention, whose kernel on the meta device would keep all scores."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        return _FlashFootprint.apply(q, k, v)


def _use_fused_attention(layer: nn.Module) -> None:
    for module in list(layer.modules()):
        for name, child in module.named_children():
            if isinstance(child, CoreAttention):
                setattr(module, name, _FusedAttention())


def measure(run: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> LayerCost:
    """Cost of `run(x)`, which uses `layer`; all on the meta device. Parameters are not counted as activations."""
    _use_fused_attention(layer)
    parameters = {p.untyped_storage()._cdata for p in layer.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensor keeps its storage, and so the key, alive

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    if x.is_floating_point():
        x = x.requires_grad_()
    with count_communication() as forward, saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(x)
    with count_communication() as backward:
        y.backward(torch.empty_like(y))
    return LayerCost(sum(size for size, _ in kept.values()), y.nbytes, forward, backward)
