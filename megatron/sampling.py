"""Sampling tokens from a model, one after another.

Context: a model predicts from at most `seq_length` tokens, as many as it was trained on. Where a text
outgrows them, its latest half is read anew from position 0 on, as training samples too begin in the middle
of a text. So text of any length can be sampled with every position embedding, with a cache or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.errors import TrainingError
from megatron.model.attention import KeyValueCache
from megatron.model.gpt import GPT

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: the likeliest token. top_k, top_p 0: no such limit.

    `eod` ends a text (None: nothing does). `use_cache` keeps keys and values of the tokens read so far.
    """

    maximum_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    eod: int | None = None
    use_cache: bool = True


def token_probabilities(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Probabilities of tokens, likeliest first, and their ids: logits [b, v] -> float64 [b, v], int64 [b, v].

    Softmax at `temperature` > 0; of it the `top_k` likeliest tokens; of these, renormalised, the smallest set
    with probability >= `top_p` (Holtzman et al., The Curious Case of Neural Text Degeneration,
    arXiv:1904.09751, eq. 2). What is left sums to 1.
    """
    ordered, ids = logits.double().sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = -torch.inf
    probabilities = torch.softmax((ordered - ordered[:, :1]) / temperature, dim=-1)
    if 0.0 < top_p < 1.0:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities, ids


def choose_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Next tokens, int64 [b]. logits: [b, v]; uniform: float64 [b] in [0, 1), at which the CDF is inverted.

    Raises TrainingError where logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise TrainingError(
            "the model's logits are not finite: its training diverged, or fp16 overflows (try bf16 or fp32)"
        )
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    probabilities, ids = token_probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    cdf = probabilities.cumsum(dim=-1)
    place = torch.searchsorted(cdf, uniform.to(cdf)[:, None] * cdf[:, -1:], right=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not reach what was ruled out
    return ids.gather(1, torch.minimum(place, last)).squeeze(1)


def _draw(rows: int, generator: Generators) -> Tensor:
    """float64 [rows] in [0, 1); with a generator a row, a row does not depend on its neighbours."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(rows, generator=generator, dtype=torch.float64)
    return torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generator])


def context_length(model: GPT) -> int:
    """The largest number of tokens that the model predicts from."""
    config = model.config
    limited = config.pos_emb == "learned"
    return min(config.seq_length, config.max_position_embeddings) if limited else config.seq_length


class _Context:
    """The tokens that the next one is predicted from, and what the model remembers of them."""

    def __init__(self, model: GPT, tokens: Tensor, use_cache: bool) -> None:
        self.model, self.use_cache = model, use_cache
        self.limit = context_length(model)
        self._read_anew(tokens[:, -self.limit :])

    def _read_anew(self, tokens: Tensor) -> None:
        self.tokens = self.unread = tokens
        self.caches = [KeyValueCache() for _ in self.model.layers] if self.use_cache else None

    def next_logits(self) -> Tensor:
        """[b, v] of the token to come."""
        with torch.inference_mode():
            logits: Tensor = self.model(self.unread, self.caches)
            return logits[:, -1].float()

    def append(self, chosen: Tensor) -> None:
        """chosen: int64 [b]."""
        tokens = torch.cat((self.tokens, chosen[:, None]), dim=1)
        if tokens.shape[1] > self.limit:
            self._read_anew(tokens[:, -((self.limit + 1) // 2) :])
        else:
            self.tokens, self.unread = tokens, chosen[:, None] if self.use_cache else tokens


def stream_tokens(model: GPT, tokens: Tensor, sampling: Sampling, generator: Generators = None) -> Iterator[Tensor]:
    """Yield the next tokens, int64 [b] on the CPU, up to maximum_tokens times or until each row has met eod.

    tokens: int64 [b, s >= 1], rows of one length; of more than `context_length` tokens the latest are read.
    A row that has met eod goes on with eod. Dropout is off meanwhile.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must be [batch, length >= 1], not {list(tokens.shape)}")
    device = next(model.parameters()).device
    context = _Context(model, tokens.to(device), sampling.use_cache)
    ended = torch.zeros(tokens.shape[0], dtype=torch.bool, device=device)
    training = model.training
    model.eval()
    try:
        for _ in range(sampling.maximum_tokens):
            chosen = choose_tokens(context.next_logits(), sampling, _draw(tokens.shape[0], generator))
            if sampling.eod is not None:
                chosen = chosen.masked_fill(ended, sampling.eod)
                ended |= chosen == sampling.eod
            yield chosen.cpu()
            if bool(ended.all()):
                return
            context.append(chosen)
    finally:
        model.train(training)


def generate_tokens(
    model: GPT,
    tokens: Tensor,
    *,
    maximum_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    eod: int | None = None,
    generator: Generators = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """New tokens after each row of `tokens` (int64 [b, s]), without it; eod, where met, is the last one.

    `generator`: one for all rows, one a row, or None for torch's own. Raises TrainingError where logits are
    not finite.
    """
    sampling = Sampling(maximum_tokens, temperature, top_k, top_p, eod, use_cache)
    steps = list(stream_tokens(model, tokens, sampling, generator))
    rows = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in tokens]
    return [row[: row.index(eod) + 1] if eod is not None and eod in row else row for row in rows]
