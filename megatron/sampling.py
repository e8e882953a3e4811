"""Sample tokens from a model autoregressively.

A model predicts from at most `seq_length` tokens, the length of its training samples. When a text exceeds this
length, its latest half is processed again from position 0. Training samples also begin in the middle of a text. Text
of any length can therefore be sampled with every position embedding, with or without a cache.
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
    """Options of sampling.

    temperature: 0 selects the most likely token. top_k, top_p: 0 disables the limit. eod: the token that ends a text,
    or None. use_cache: keep the keys and values of processed tokens.
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
    """Return token probabilities in descending order and the token ids.

    logits: [b, v]. Returns float64 [b, v] and int64 [b, v]. The softmax at `temperature` > 0 is restricted to the
    `top_k` most likely tokens and renormalised, then restricted to the smallest set with probability >= `top_p`
    (Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751, eq. 2). The result sums to 1.
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
    """Return the next tokens, int64 [b].

    logits: [b, v]. uniform: float64 [b] in [0, 1), the values at which the CDF is inverted. Raises TrainingError if the
    logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise TrainingError(
            "the logits of the model are not finite: training diverged, or fp16 overflowed (try bf16 or fp32)"
        )
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    probabilities, ids = token_probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    cdf = probabilities.cumsum(dim=-1)
    place = torch.searchsorted(cdf, uniform.to(cdf)[:, None] * cdf[:, -1:], right=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not select an excluded token
    return ids.gather(1, torch.minimum(place, last)).squeeze(1)


def _draw(rows: int, generator: Generators) -> Tensor:
    """Return float64 [rows] in [0, 1). With one generator per row, rows do not depend on each other."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(rows, generator=generator, dtype=torch.float64)
    return torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generator])


def context_length(model: GPT) -> int:
    """Return the maximum number of tokens from which the model predicts."""
    config = model.config
    if config.pos_emb != "learned":
        return config.seq_length
    return min(config.seq_length, config.max_position_embeddings - config.position_offset)


class _Context:
    """The tokens from which the next one is predicted, and the cached keys and values."""

    def __init__(self, model: GPT, tokens: Tensor, use_cache: bool) -> None:
        self.model, self.use_cache = model, use_cache
        self.limit = context_length(model)
        self._restart(tokens[:, -self.limit :])

    def _restart(self, tokens: Tensor) -> None:
        self.tokens = self.unread = tokens
        self.caches = [KeyValueCache() for _ in self.model.layers] if self.use_cache else None

    def next_logits(self) -> Tensor:
        """Return the logits of the next token, [b, v]."""
        with torch.inference_mode():
            logits: Tensor = self.model(self.unread, self.caches)
            return logits[:, -1].float()

    def append(self, chosen: Tensor) -> None:
        """Append the next tokens `chosen`, int64 [b]."""
        tokens = torch.cat((self.tokens, chosen[:, None]), dim=1)
        if tokens.shape[1] > self.limit:
            self._restart(tokens[:, -((self.limit + 1) // 2) :])
        else:
            self.tokens, self.unread = tokens, chosen[:, None] if self.use_cache else tokens


def stream_tokens(model: GPT, tokens: Tensor, sampling: Sampling, generator: Generators = None) -> Iterator[Tensor]:
    """Yield the next tokens, int64 [b] on the CPU, until maximum_tokens or until every row has reached eod.

    tokens: int64 [b, s >= 1]. If s exceeds `context_length`, only the latest tokens are used. A row that has reached
    eod continues with eod. Dropout is disabled during sampling.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens: expected shape [batch, length >= 1], got {list(tokens.shape)}")
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
    """Return the new tokens after each row of `tokens` (int64 [b, s]). A generated eod is the last one.

    generator: one for all rows, one per row, or None for torch's default generator. Raises TrainingError if the logits
    are not finite.
    """
    sampling = Sampling(maximum_tokens, temperature, top_k, top_p, eod, use_cache)
    steps = list(stream_tokens(model, tokens, sampling, generator))
    rows = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in tokens]
    return [row[: row.index(eod) + 1] if eod is not None and eod in row else row for row in rows]
