"""What is added to the attention scores where causality alone does not suffice: a sliding window, ALiBi."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ScoreMask:
    """The tensor that attention adds to its scores: 0 where a query sees a key, and -inf where it does not.

    All blocks share one object. A mask for training has s x s entries in the type of the scores, with slopes one for
    each head. It is created once, so that the blocks save one tensor for the backward pass. The object is not a module
    and has no buffer: its tensor must survive construction on the meta device and casts of the model.

    window: number of positions before its own that a query sees; None for all of them. slopes: of each head of this
    rank (see `alibi_slopes`), for ALiBi.
    """

    def __init__(self, window: int | None = None, slopes: Sequence[float] = ()) -> None:
        self.window, self.slopes = window, tuple(slopes)
        self._kept: Tensor | None = None

    def __call__(self, queries: int, keys: int, like: Tensor, always: bool = False) -> Tensor | None:
        """[1, 1 or heads, queries, keys] in the type and on the device of `like`, or None.

        The queries are the last positions of the keys. None means that causality suffices: is_causal for as many
        queries as keys, and no mask for one query. always: return the tensor in that case too.
        """
        within = self.window is None or keys <= self.window + 1
        if within and queries in (1, keys) and not self.slopes and not always:
            return None
        if queries != keys:
            return self._make(queries, keys, like)
        kept = self._kept
        if kept is None or kept.shape[-1] != keys or (kept.dtype, kept.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # a mask created while sampling must also work in training
                kept = self._kept = self._make(queries, keys, like)
        return kept

    def _make(self, queries: int, keys: int, like: Tensor) -> Tensor:
        position = torch.arange(keys, device=like.device)
        distance = position[keys - queries :, None] - position  # [queries, keys]
        hidden = distance < 0
        if self.window is not None:
            hidden = hidden | (distance > self.window)
        mask = torch.zeros(1, queries, keys, device=like.device)
        if self.slopes:
            mask = distance * -torch.tensor(self.slopes, device=like.device)[:, None, None]
        return mask.masked_fill_(hidden, -torch.inf).to(like.dtype)[None]
