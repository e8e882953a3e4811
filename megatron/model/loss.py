"""Next-token cross-entropy in fp32."""

from __future__ import annotations

from torch import Tensor

from megatron.mpu import SINGLE, Communicator, vocab_parallel_cross_entropy


def next_token_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    *,
    group: Communicator = SINGLE,
    vocab_size: int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats per token.

    logits: [b, s, v]; in a tensor-parallel `group` the rank's columns [b, s, padded v / n].
    labels: int64 [b, s]. weights: float [b, s], factor of each token's loss before the mean over all b x s; None for 1.
    z_loss: weight of mean(logsumexp(logits)^2), Chowdhery et al., PaLM, arXiv:2204.02311, section 5.
    vocab_size: size of the vocabulary without padding; by default the number of columns.
    """
    losses = vocab_parallel_cross_entropy(
        logits, labels, group, vocab_size=vocab_size or logits.shape[-1], z_loss=z_loss
    )
    return losses.mean() if weights is None else (losses * weights).mean()
