"""Causal self-attention with a fused QKV projection and grouped key-value heads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.errors import ConfigError
from megatron.model.layers import column_linear, row_linear
from megatron.model.relative_position import RelativePositionBias
from megatron.model.rotary import RotaryEmbedding
from megatron.model.score_mask import ScoreMask
from megatron.mpu import SERIAL, TensorParallel
from mup.roles import Declaration, Part
from mup.rules import Role


class KeyValueCache:
    """Keys and values of one layer for previous positions: [b, kv_heads, kept positions, head_dim] each.

    length: number of previous positions, kept or not.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Append the new keys and values and return all of them.

        window: keep only this number of the last positions for later queries; None for all.
        """
        self.length += keys.shape[-2]
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=-2)
            values = torch.cat((self.values, values), dim=-2)
        first = 0 if window is None else max(keys.shape[-2] - window, 0)
        self.keys, self.values = keys[..., first:, :], values[..., first:, :]
        return keys, values


class CoreAttention(nn.Module):
    """Causal softmax(scale * q k^T) v, under a mask. It is a separate module because hooks read q, k and v."""

    def __init__(
        self, scale: float, dropout: float, mask: ScoreMask | None = None, tp: TensorParallel = SERIAL
    ) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = dropout
        self.mask = mask or ScoreMask()
        self.tp = tp

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q: [b, heads, s, d]; k, v: [b, kv_heads, t, d] with t >= s. The queries are the last s positions.

        bias: [1, heads, s, t] to add to the scores, or None.
        """
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        s, t = q.shape[-2], k.shape[-2]
        mask = self.mask(s, t, q, always=bias is not None)
        if bias is not None and mask is not None:
            mask = mask + bias.to(mask.dtype)
        dropout = self.dropout if self.training else 0.0
        with self.tp.inside() if dropout else nullcontext():
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and s > 1, scale=self.scale
            )


class Attention(nn.Module):
    """Causal self-attention, [b, s, h] -> [b, s, h]. Head counts are those of the whole model.

    The rows of `query_key_value` are ordered by key-value head: its queries, its key and its value, head_dim rows
    each. With one query per key-value head this is GPT-NeoX's order. Tensor parallelism splits by whole key-value
    heads, so the rows of each rank are contiguous.
    qk_norm: makes the norm of the queries of each head, and that of the keys; None for no norm.
    Raises ConfigError if the number of ranks does not divide `num_kv_heads`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        scale: float,
        bias: bool,
        rotary: RotaryEmbedding | None,
        dropout: float,
        qk_norm: Callable[[], nn.Module] | None,
        mask: ScoreMask,
        position_bias: RelativePositionBias | None = None,
        tp: TensorParallel = SERIAL,
    ) -> None:
        super().__init__()
        if num_kv_heads % tp.group.size:
            raise ConfigError(
                f"{num_kv_heads} key-value heads cannot be split over {tp.group.size} tensor-parallel ranks"
            )
        self.queries_per_kv = num_heads // num_kv_heads
        self.head_dim = hidden_size // num_heads
        period = (self.queries_per_kv + 2) * self.head_dim
        queries = Part("query", Role.HIDDEN, 0, self.queries_per_kv * self.head_dim, period)
        keys = Part("key", Role.VALUE, period - 2 * self.head_dim, period - self.head_dim, period)
        values = Part("value", Role.VALUE, period - self.head_dim, period, period)
        fused = Declaration(Role.HIDDEN, parts=(queries, keys, values))
        self.query_key_value = column_linear(hidden_size, num_kv_heads * period, bias, fused, tp)
        self.dense = row_linear(hidden_size, hidden_size, bias, Declaration(Role.HIDDEN, "output_matrix"), tp)
        self.q_norm, self.k_norm = (qk_norm() if qk_norm else None for _ in "qk")
        self.rotary = rotary
        self.rpe = position_bias
        self.core = CoreAttention(scale, dropout, mask, tp)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """x: [b, s, h] -> [b, s, h]; under sequence parallelism both are this rank's slice of s."""
        qkv = self.query_key_value(x).unflatten(-1, (-1, self.queries_per_kv + 2, self.head_dim))
        b, s = qkv.shape[:2]
        q = qkv[:, :, :, :-2].reshape(b, s, -1, self.head_dim).transpose(1, 2)  # [b, heads, s, d]
        k, v = (qkv[:, :, :, i].transpose(1, 2) for i in (-2, -1))  # [b, kv_heads, s, d]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            offset = cache.length if cache is not None else 0
            q, k = self.rotary(q, offset), self.rotary(k, offset)
        if cache is not None:
            k, v = cache.extend(k, v, self.core.mask.window)
        bias = None if self.rpe is None else self.rpe(q.shape[-2], k.shape[-2])
        context = self.core(q, k, v, bias=bias).transpose(1, 2).reshape(b, s, -1)  # [b, s, h]
        y: Tensor = self.dense(context)
        return y
