"""The training objective: split a batch into tokens and targets, and compute the loss from logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.model.loss import next_token_loss
from megatron.mpu import SINGLE, Communicator
from megatron.neox_arguments.run_config import LossConfig
from megatron.tokenizer import Tokenizer

Batch = dict[str, Tensor]
Target = Tensor | tuple[Tensor, Tensor]
_SHARE = "share"  # of a batch: the share of positions that count in all the microbatches that it is averaged with


@dataclass(frozen=True)
class Objective:
    """Next-token prediction. masked_token: positions with this token do not count in the loss (eod-mask-loss).

    A batch is {"text": int64 [b, s + 1]}. With "label", int64 [b, s + 1], the labels are the targets, and a position
    with a negative label does not count.
    """

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

    def counted(self, batch: Batch) -> Tensor | None:
        """The positions of a batch that count in the loss: bool [b, s], or None if all do."""
        counted = batch["label"][:, 1:] >= 0 if "label" in batch else None
        if self.masked_token is None:
            return counted
        unmasked = torch.ne(batch["text"][:, :-1], self.masked_token)
        return unmasked if counted is None else counted & unmasked

    def split(self, batch: Batch) -> tuple[Tensor, Target]:
        """Split a batch into tokens [b, s], and labels [b, s] or (labels, weights [b, s]).

        The weights make the mean loss over all positions the mean over those that count: of this batch, or of the
        microbatches of `share_counts`.
        """
        tokens, labels = batch["text"][:, :-1], batch.get("label", batch["text"])[:, 1:]
        counted = self.counted(batch)
        if counted is None:
            return tokens, labels
        share = batch[_SHARE] if _SHARE in batch else counted.float().mean()
        return tokens, (labels.clamp(min=0), counted / share.clamp(min=torch.finfo(torch.float32).tiny))

    def loss(self, logits: Tensor, target: Target, training: bool) -> Tensor:
        """Mean loss in nats per token. The z-loss counts only in training."""
        labels, weights = target if isinstance(target, tuple) else (target, None)
        z_loss = self.z_loss if training else 0.0
        return self.loss_function(logits, labels, weights, z_loss, group=self.group, vocab_size=self.vocab_size)

    def share_counts(self, batches: Sequence[Batch], replicas: Communicator, device: torch.device) -> Sequence[Batch]:
        """Weigh the microbatches of a step, so that the mean of their losses is the mean over the positions that count.

        That mean is over all microbatches of all `replicas`, so it does not depend on how they divide the samples.
        Collective on `device`.
        """
        tally = Tally(self)
        for batch in batches:
            tally.add(batch)
        if not tally.masks:
            return batches
        counted, positions = replicas.all_reduce(tally.sums.to(device)).tolist()
        return [{**batch, _SHARE: torch.tensor(counted / positions)} for batch in batches]


class Tally:
    """Counts the positions of batches. sums: those that count in the loss, and all: float64 [2]."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.masks = False  # whether there was a batch in which not every position has to count

    def add(self, batch: Batch) -> None:
        counted = self._objective.counted(batch)
        positions = batch["text"][:, 1:].numel()
        self.masks |= counted is not None
        self.sums += torch.tensor([positions if counted is None else int(counted.sum()), positions])

    def of(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield each batch after counting it, with weights of 1 for the positions that count and 0 for the others."""
        for batch in batches:
            self.add(batch)
            yield {**batch, _SHARE: torch.ones(())}


def masked_token(config: LossConfig, tokenizer: Tokenizer) -> int | None:
    """The token whose positions do not count in the loss, or None. Raises DataError if the tokenizer lacks it."""
    return tokenizer.eod if config.mask_eod else None
