"""Next-token cross-entropy in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits: Tensor, labels: Tensor, mask: Tensor | None = None, z_loss: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats a token. logits: [b, s, v]; labels: int64 [b, s]; mask: bool [b, s], True counts.

    z_loss: weight of mean(logsumexp(logits)^2), Chowdhery et al., PaLM, arXiv:2204.02311, section 5.
    """
    logits = logits.float().flatten(0, 1)
    losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
    if z_loss:
        losses = losses + z_loss * torch.logsumexp(logits, dim=-1).square()
    if mask is None:
        return losses.mean()
    weights = mask.flatten().to(losses.dtype)
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)
