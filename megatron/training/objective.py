"""The training objective: split a batch into tokens and targets, and compute the loss from logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.model.loss import next_token_loss
from megatron.mpu import SINGLE, Communicator
from megatron.neox_arguments.run_config import LossConfig
from megatron.tokenizer import Tokenizer

Batch = dict[str, Tensor]
Target = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Objective:
    """Next-token prediction. masked_token: positions with this token do not count in the loss (eod-mask-loss)."""

    vocab_size: int
    z_loss: float = 0.0
    masked_token: int | None = None
    group: Communicator = SINGLE
    loss_function: Callable[..., Tensor] = next_token_loss

    def compiled(self) -> Objective:
        """Return the objective with a compiled loss, which does not write the fp32 logits to memory.

        With a vocabulary that is split over ranks it returns itself, because the loss contains collectives.
        """
        if self.group.size > 1:
            return self
        return dataclasses.replace(self, loss_function=torch.compile(next_token_loss))

    def split(self, batch: Batch) -> tuple[Tensor, Target]:
        """Split {"text": int64 [b, s + 1]} into tokens [b, s], and labels [b, s] or (labels, mask)."""
        tokens, labels = batch["text"][:, :-1], batch["text"][:, 1:]
        if self.masked_token is None:
            return tokens, labels
        return tokens, (labels, torch.ne(tokens, self.masked_token))

    def loss(self, logits: Tensor, target: Target, training: bool) -> Tensor:
        """Mean loss in nats per token. The z-loss counts only in training."""
        labels, mask = target if isinstance(target, tuple) else (target, None)
        z_loss = self.z_loss if training else 0.0
        return self.loss_function(logits, labels, mask, z_loss, group=self.group, vocab_size=self.vocab_size)


def masked_token(config: LossConfig, tokenizer: Tokenizer) -> int | None:
    """The token whose positions do not count in the loss, or None. Raises DataError if the tokenizer lacks it."""
    return tokenizer.eod if config.mask_eod else None
