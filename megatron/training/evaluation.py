"""Loss on held-out data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from megatron.initialize import Runtime


@torch.no_grad()
def evaluate(
    model: Any,
    batches: Iterator[dict[str, Tensor]],
    microbatches: int,
    loss_of: Callable[[Any, dict[str, Tensor]], Tensor],
    runtime: Runtime,
) -> float:
    """Mean loss in nats a token over `microbatches` microbatches of every process, dropout off."""
    was_training = model.training
    model.eval()
    try:
        total = torch.zeros((), device=runtime.device)
        count = 0
        for batch in itertools.islice(batches, microbatches):
            total += loss_of(model, {key: value.to(runtime.device) for key, value in batch.items()})
            count += 1
        return float(runtime.mean(total / max(count, 1)))
    finally:
        model.train(was_training)
