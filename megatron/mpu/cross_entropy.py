"""Cross-entropy over a vocabulary that is split over the tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.mpu.communicator import Communicator


class _VocabParallel(torch.autograd.Function):
    """Loss and logsumexp of each token.

    logits: fp32, without padding. local: labels minus the id of this rank's first column.
    A rank can have no columns; it then adds nothing to the sums.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, local: Tensor, group: Communicator) -> tuple[Tensor, Tensor]:
        columns = logits.shape[-1]
        local_max = logits.amax(-1) if columns else logits.new_full(local.shape, -torch.inf)
        maximum = group.all_reduce(local_max, "max")
        shifted = logits - maximum.unsqueeze(-1)
        here = (local >= 0) & (local < columns)
        index = local.masked_fill(~here, 0).unsqueeze(-1)
        target = shifted.gather(-1, index).squeeze(-1).masked_fill(~here, 0.0) if columns else torch.zeros_like(maximum)
        exponentials = shifted.exp_()
        total, target = group.all_reduce(torch.stack((exponentials.sum(-1), target))).unbind()
        softmax = exponentials.div_(total.unsqueeze(-1))
        ctx.save_for_backward(softmax, index, here)
        log_total = total.log()
        return log_total - target, log_total + maximum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_logsumexp: Tensor) -> tuple[Tensor, None, None]:
        softmax, index, here = ctx.saved_tensors
        grad = softmax * (grad_loss + grad_logsumexp).unsqueeze(-1)
        if grad.shape[-1]:
            grad.scatter_add_(-1, index, -grad_loss.masked_fill(~here, 0.0).unsqueeze(-1))
        return grad, None, None


_vocab_parallel: Callable[[Tensor, Tensor, Communicator], tuple[Tensor, Tensor]] = _VocabParallel.apply


def cross_entropy_and_logsumexp(
    logits: Tensor, labels: Tensor, group: Communicator, *, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and logsumexp of the logits: fp32 [...], differentiable, equal on every rank.

    logits: [..., padded vocabulary / n], this rank's columns; converted to fp32.
    labels: int64 [...], global ids. A label outside 0 .. vocab_size - 1 gives NaN; in a group of size 1 torch
    raises IndexError.
    vocab_size: columns from this one on are padding; they have no probability and no gradient.
    Communication for T tokens: two all_reduces of 4 T and 8 T bytes in the forward pass, none in the backward pass.
    """
    columns = logits.shape[-1]
    start = group.rank * columns
    kept = logits[..., : min(max(vocab_size - start, 0), columns)].float()
    if group.size == 1:
        flat = F.cross_entropy(kept.flatten(0, -2), labels.flatten(), reduction="none")
        return flat.view(labels.shape), torch.logsumexp(kept, dim=-1)
    loss, logsumexp = _vocab_parallel(kept, labels - start, group)
    known = (labels >= 0) & (labels < vocab_size)
    return loss.masked_fill(~known, torch.nan), logsumexp


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, group: Communicator, *, vocab_size: int, z_loss: float = 0.0
) -> Tensor:
    """Cross-entropy of each token plus z_loss * logsumexp^2 (PaLM, arXiv:2204.02311, section 5): fp32 [...].

    Arguments and communication are those of `cross_entropy_and_logsumexp`.
    """
    if group.size == 1 and not z_loss:
        kept = logits[..., :vocab_size].float()
        return F.cross_entropy(kept.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    loss, logsumexp = cross_entropy_and_logsumexp(logits, labels, group, vocab_size=vocab_size)
    return loss + z_loss * logsumexp.square() if z_loss else loss
