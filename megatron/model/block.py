"""One Transformer block, with sequential or parallel residual."""

from __future__ import annotations

from torch import Tensor, nn

from megatron.model.attention import Attention, KeyValueCache
from megatron.mpu import SERIAL, TensorParallel


class Block(nn.Module):
    """Pre-norm block. Sequential: x + a(n1 x), then x + f(n2 x). Parallel (GPT-J): x + a(n1 x) + f(n2 x).

    mlp: an MLP, or a mixture of experts, [b, s, h] -> [b, s, h].
    residual_mult: multiplies each branch (depth-muP, CompleteP).
    post_attention_norm: None for a shared norm, where both branches of a parallel block read n1.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        input_norm: nn.Module,
        post_attention_norm: nn.Module | None,
        *,
        parallel_residual: bool,
        residual_mult: float,
        dropout: float,
        tp: TensorParallel = SERIAL,
    ) -> None:
        super().__init__()
        self.input_layernorm = input_norm
        self.attention = attention
        self.post_attention_layernorm = post_attention_norm
        self.mlp = mlp
        self.parallel_residual = parallel_residual
        self.residual_mult = residual_mult
        self.dropout = dropout
        self.tp = tp

    def _branch(self, x: Tensor) -> Tensor:
        x = self.tp.hidden_dropout(x, self.dropout, self.training)
        return x if self.residual_mult == 1.0 else x * self.residual_mult

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """x: [b, s, h] -> [b, s, h]; under sequence parallelism both are this rank's slice of s."""
        normed = self.input_layernorm(x)
        attended = self._branch(self.attention(normed, cache))
        if self.parallel_residual:
            if self.post_attention_layernorm is not None:
                normed = self.post_attention_layernorm(x)
            return x + attended + self._branch(self.mlp(normed))
        x = x + attended
        assert self.post_attention_layernorm is not None
        return x + self._branch(self.mlp(self.post_attention_layernorm(x)))
