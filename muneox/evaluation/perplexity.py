"""Perplexity of a model on a data set, per token, per character and per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron.checkpointing.collective import gather, rank, world_size
from megatron.data.data_utils import Dataset
from megatron.data.loader import collate
from megatron.model.gpt import GPT
from megatron.mpu import SINGLE, vocab_parallel_cross_entropy
from megatron.tokenizer import Tokenizer
from megatron.training.objective import Objective


@dataclass(frozen=True)
class Perplexity:
    """Sums over the predicted tokens. nats: negative log-likelihood. characters, bytes: of the decoded text (UTF-8)."""

    nats: float
    tokens: int
    characters: int
    bytes: int

    def results(self) -> dict[str, float]:
        """Loss [nats per token], perplexities per token and per character, and bits per byte."""
        found = {"loss": self.nats / self.tokens, "perplexity": _exp(self.nats / self.tokens)}
        if self.characters:
            found["char_perplexity"] = _exp(self.nats / self.characters)
            found["bits_per_byte"] = self.nats / math.log(2) / self.bytes
        return found


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def perplexity(
    model: GPT, dataset: Dataset, samples: int, tokenizer: Tokenizer, eod: int | None, masked: int | None, batch: int
) -> Perplexity:
    """Perplexity on the first `samples` samples of the data set. Collective: each process reads its share of them.

    eod: the token between documents; it counts as a token, but has no text. masked: tokens after this token do not
    count, or None. batch: samples per forward pass.
    """
    objective = Objective(vocab_size=tokenizer.vocab_size, masked_token=masked)
    device = next(model.parameters()).device
    own = range(rank(), samples, world_size())
    sums = np.zeros(4)
    for start in range(0, len(own), batch):
        rows = collate([dataset[index] for index in own[start : start + batch]])
        inputs = {name: row.to(device) for name, row in rows.items()}
        tokens, target = objective.split(inputs)
        labels = target[0] if isinstance(target, tuple) else target
        counted = objective.counted(inputs)
        mask = torch.ones_like(labels, dtype=torch.bool) if counted is None else counted
        with torch.inference_mode():
            losses = vocab_parallel_cross_entropy(model(tokens), labels, SINGLE, vocab_size=tokenizer.vocab_size)
        sums[:2] += float(losses[mask].double().sum()), int(mask.sum())
        for row, kept in zip(labels.cpu(), mask.cpu()):
            sums[2:] += _text_length(tokenizer, row[kept].tolist(), eod)
    nats, count, characters, encoded = np.sum(gather(sums), axis=0).tolist()
    return Perplexity(nats, int(count), int(characters), int(encoded))


def _text_length(tokenizer: Tokenizer, tokens: Sequence[int], eod: int | None) -> tuple[int, int]:
    """Characters and UTF-8 bytes of the text of the tokens."""
    text = tokenizer.detokenize([token for token in tokens if token != eod])
    return len(text), len(text.encode("utf-8", errors="replace"))
