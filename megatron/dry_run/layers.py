"""Activation memory and communication of one layer for one microbatch, measured by running it on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from megatron.model.attention import CoreAttention
from megatron.mpu import CommunicationCounts, count_communication


@dataclass(frozen=True)
class LayerCost:
    """Memory and communication of one layer.

    saved_bytes: activations kept for the backward pass. shared_bytes: mask of the attention scores, of which all layers
    keep the same. peak_bytes: highest number of bytes in memory during the
    forward and backward pass, including kept activations. output_bytes: size of the layer's output. forward, backward:
    tensor-parallel collectives of this rank.
    """

    saved_bytes: int
    shared_bytes: int
    peak_bytes: int
    output_bytes: int
    forward: CommunicationCounts
    backward: CommunicationCounts


class _FlashFootprint(torch.autograd.Function):
    """Saves what a fused attention kernel saves (q, k, v, the output and one number per row) without computing.

    bias: a position bias with a gradient, or None. Each layer saves its own.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        b, heads, s, d = q.shape
        out = q.new_empty(b, s, heads, d).transpose(1, 2)  # in the kernels' layout
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32), bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, _, _, bias = ctx.saved_tensors
        return (
            torch.empty_like(q),
            torch.empty_like(k),
            torch.empty_like(v),
            None if bias is None else torch.empty_like(bias),
        )


_flash_footprint: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = _FlashFootprint.apply


class _FusedAttention(nn.Module):
    """Replaces CoreAttention, which would save all attention scores on the meta device."""

    def __init__(self, core: CoreAttention) -> None:
        super().__init__()
        self.mask = core.mask
        self.mask_bytes = 0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        mask = self.mask(q.shape[-2], k.shape[-2], q, always=bias is not None)
        self.mask_bytes = 0 if mask is None else mask.nbytes
        return _flash_footprint(q, k, v, None if bias is None else bias.to(q.dtype))


class _NormFootprint(torch.autograd.Function):
    """Saves what a fused norm saves (its input and one number per row) without computing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


_norm_footprint: Callable[[Tensor, Tensor], Tensor] = _NormFootprint.apply


class _FusedRMSNorm(nn.Module):
    """Replaces RMSNorm, which saves two fp32 copies of its input when the meta device runs it unfused."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return _norm_footprint(x, self.weight)


def _use_fused_kernels(layer: nn.Module) -> nn.Module:
    """Replace, in place, the modules that a GPU runs as one kernel. Returns the layer, or its replacement."""
    for name, child in list(layer.named_children()):
        setattr(layer, name, _use_fused_kernels(child))
    if isinstance(layer, CoreAttention):
        return _FusedAttention(layer)
    return _FusedRMSNorm(layer) if isinstance(layer, nn.RMSNorm) else layer


class _LiveBytes(TorchDispatchMode):
    """Tracks the bytes of all tensors that operations inside the context create, and their peak."""

    def __init__(self) -> None:
        initialise: Callable[[], None] = super().__init__
        initialise()
        self.peak = self._live = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self._live += size
        self.peak = max(self.peak, self._live)


def measure(layer: nn.Module, x: Tensor, finish: Callable[[nn.Module, Tensor], Tensor] | None = None) -> LayerCost:
    """Cost of `layer(x)`, or of `finish(layer, x)`, on the meta device. Parameters do not count as activations."""
    layer = _use_fused_kernels(layer)
    parameters = {p.untyped_storage()._cdata for p in layer.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensor keeps its storage, and so the key, alive

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    if x.is_floating_point():
        x = x.requires_grad_()
    with _LiveBytes() as live:
        with count_communication() as forward, saved_tensors_hooks(pack, lambda tensor: tensor):
            y = layer(x) if finish is None else finish(layer, x)
        saved = sum(size for size, _ in kept.values())
        kept.clear()
        with count_communication() as backward:
            y.backward(torch.empty_like(y))
    shared = sum(module.mask_bytes for module in layer.modules() if isinstance(module, _FusedAttention))
    return LayerCost(saved, shared, live.peak, y.nbytes, forward, backward)
