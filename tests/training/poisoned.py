"""`train.py` with a fault that comes from the data: samples with the token MARK give a bad loss or gradient.

    FAULT=loss python tests/training/poisoned.py config.json

FAULT: loss (NaN), gradient (of the loss, NaN) or spike (the loss plus 5). The fault is on one rank of several, as that
of a bad sample is, and occurs again when the sample is read again.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from megatron.training.objective import Objective

MARK = 120


class BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


def install(fault: str) -> None:
    """Make the training loss of every marked microbatch bad."""
    plain = Objective.loss

    def loss(self: Objective, logits: Tensor, target: Any, training: bool) -> Tensor:
        value = plain(self, logits, target, training)
        labels = target[0] if isinstance(target, tuple) else target
        if not training or not bool((labels == MARK).any()):
            return value
        if fault == "gradient":
            return BadGradient.apply(value)  # type: ignore[no-any-return]
        return value * float("nan") if fault == "loss" else value + 5.0

    Objective.loss = loss  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    install(os.environ["FAULT"])
    from megatron.entry import run_script
    from muneox.worker.train import main

    sys.exit(run_script(main))
