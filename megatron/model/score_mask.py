"""The mask of the attention scores where causality alone does not suffice: a sliding window."""

from __future__ import annotations

import torch
from torch import Tensor


class ScoreMask:
    """The tensor that attention adds to its scores: 0 where a query sees a key, and -inf where it does not.

    All blocks share one object. A mask for training has s x s entries in the type of the scores. It is created once, so
    that the blocks save one tensor for the backward pass. The object is not a module and has no buffer: its tensor must
    survive construction on the meta device and casts of the model.

    window: number of positions before its own that a query sees; None for all of them.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self._kept: Tensor | None = None

    def __call__(self, queries: int, keys: int, like: Tensor) -> Tensor | None:
        """[1, 1, queries, keys] in the type and on the device of `like`, or None.

        The queries are the last positions of the keys. None means that causality suffices: is_causal for as many
        queries as keys, and no mask for one query.
        """
        within = self.window is None or keys <= self.window + 1
        if within and queries in (1, keys):
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
        mask = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(hidden, -torch.inf)[None, None]
