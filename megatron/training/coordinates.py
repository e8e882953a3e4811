"""Coordinates of a model: the size of every kind of activation, now and against the initial model."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megatron.model.attention import CoreAttention

ATTENTION_LOGITS = "attention.logits"


def _kind(name: str) -> str:
    """Module type: the name without the block's index; a block itself is `block`."""
    return re.sub(r"^layers\.\d+(\.|$)", "", name) or "block"


def _attention_logits(core: CoreAttention, q: Tensor, k: Tensor) -> Tensor:
    """scale * q k^T where the causal mask allows, 0 elsewhere: [b, heads, s, s]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (core.scale * q.float() @ k.float().transpose(-1, -2)).tril()


class Coordinates:
    """Activations of one model on one fixed batch, by module name, recorded with forward hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._initial: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def _recording(self) -> Iterator[dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., None]:
            def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                if isinstance(module, CoreAttention):
                    logits = name.replace("attention.core", ATTENTION_LOGITS)
                    seen[logits] = _attention_logits(module, inputs[0], inputs[1]).detach()
                if isinstance(output, Tensor):
                    seen[name] = output.detach().float()

            return record

        containers = (nn.ModuleList,)
        handles = [
            module.register_forward_hook(hook(name))
            for name, module in self.model.named_modules()
            if name and not isinstance(module, containers)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def measure(self, tokens: Tensor, t: int) -> dict[tuple[str, str], float]:
        """{(module type, statistic): value}; `mean_abs` at t = 0, `rms_delta` against t = 0 afterwards.

        Statistics of the same module type are averaged over the blocks (root mean square for `rms_delta`).
        """
        was_training = self.model.training
        self.model.eval()
        with self._recording() as seen:
            self.model(tokens)
        self.model.train(was_training)
        values: dict[str, list[float]] = defaultdict(list)
        for name, x in seen.items():
            if t == 0:
                self._initial[name] = x
                values[_kind(name)].append(float(x.abs().mean()))
            else:
                values[_kind(name)].append(float((x - self._initial[name]).square().mean()))
        if t == 0:
            return {(kind, "mean_abs"): sum(v) / len(v) for kind, v in values.items()}
        return {(kind, "rms_delta"): (sum(v) / len(v)) ** 0.5 for kind, v in values.items()}
