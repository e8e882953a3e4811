"""Fold the multipliers of muP into the weights, so that a model without them gives the same logits."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from megatron.architecture import Widths
from megatron.model.config import GPTConfig
from megatron.parametrization.widths import ForwardFactors
from mup.rules import attention_scale


def plain_factors(widths: Widths) -> ForwardFactors:
    """Factors of an ordinary Transformer: 1, and 1/sqrt(head dimension) for the attention scores."""
    scale = attention_scale(widths.head_dim, widths.head_dim)
    return ForwardFactors(1.0, scale, 1.0, 1.0, positions=widths.head_dim**0.5)


@dataclasses.dataclass(frozen=True)
class Folding:
    """Multiplies each parameter so that a model with the factors `left` gives the logits of one with `factors`.

    The multiplier of the embedding goes into the embedding, that of the residual branches into their last matrix and
    bias, that of the attention scores into the queries, and that of the logits into the readout. A tied readout is the
    embedding, so the final norm takes the multiplier of the logits and undoes that of the embedding.
    """

    config: GPTConfig
    factors: ForwardFactors
    left: ForwardFactors

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """The parameter `name` with its multiplier. Computes in fp32 and returns the type of `x`."""
        if name.endswith(("query_key_value.weight", "query_key_value.bias")):
            return self._queries(x)
        return _times(x, self._multiplier(name))

    def describe(self) -> str:
        """For a message: the multipliers that are folded, and where they are; empty if no weight changes."""
        readout = "final norm, because the readout is tied" if self.config.tied_readout else "readout"
        places = {"embedding": "embedding", "attention": "queries", "residual": "residual branches", "logits": readout}
        if self.config.pos_emb == "rpe":
            places["positions"] = "relative position bias"
        ratios = {name: self._ratio(name) for name in places}
        return ", ".join(f"{name} x {ratios[name]:g} ({places[name]})" for name in places if ratios[name] != 1.0)

    def _ratio(self, factor: str) -> float:
        ratio: float = getattr(self.factors, factor) / getattr(self.left, factor)
        return ratio

    def _multiplier(self, name: str) -> float:
        if name.startswith("embedding."):
            return self._ratio("embedding")
        if name.startswith("readout."):
            return self._ratio("logits")
        if name.startswith("final_norm."):
            return self._ratio("logits") / self._ratio("embedding") if self.config.tied_readout else 1.0
        if ".attention.rpe." in name:
            return self._ratio("positions")
        if ".attention.dense." in name or ".dense_4h_to_h" in name:
            return self._ratio("residual")
        return 1.0

    def _queries(self, x: Tensor) -> Tensor:
        """The fused rows with the queries multiplied. Rotation by position is linear, so it commutes with that."""
        multiplier = self._ratio("attention")
        if multiplier == 1.0:
            return x
        widths = self.config.widths
        rows = widths.num_attention_heads // widths.num_kv_heads * widths.head_dim
        by_head = x.clone().unflatten(0, (widths.num_kv_heads, -1))
        by_head[:, :rows] = _times(by_head[:, :rows], multiplier)
        fused: Tensor = by_head.flatten(0, 1)
        return fused


def _times(x: Tensor, multiplier: float) -> Tensor:
    return x if multiplier == 1.0 else (x.float() * multiplier).to(x.dtype)
