"""Rotary position embedding, in the half-rotation form of GPT-NeoX and Llama."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.errors import ConfigError


class RotaryEmbedding:
    """Rotates the first `dim` entries of every head (Su et al., RoFormer, arXiv:2104.09864, eq. 34).

    The class is not a module and has no buffer: its fp32 table must survive construction on the meta device and
    casts of the model to half precision.
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        if dim % 2:
            raise ConfigError(f"rotary-pct: expected an even number of rotated entries per head, got {dim}")
        self.dim = dim
        self.base = base
        self._table: tuple[Tensor, Tensor] | None = None

    def prepare(self, length: int, device: torch.device) -> None:
        """Create the table for `length` positions now, so that a compiled block is not compiled again later."""
        self._tables(length, device)

    def _tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [length, dim]."""
        if self._table is None or self._table[0].shape[0] < length or self._table[0].device != device:
            rows = 1 << (length - 1).bit_length()  # sampling does not recompute the table for each token
            with torch.inference_mode(False):  # a table created while sampling must also work in training
                self._table = self._make_tables(rows, device)
        cos, sin = self._table
        return cos[:length], sin[:length]

    def _make_tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        inverse_frequency = self.base ** -(torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequency)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(device), angle.sin().to(device)

    def __call__(self, x: Tensor, offset: int = 0) -> Tensor:
        """Rotate x [b, heads, s, head_dim] at positions offset .. offset + s - 1. Keeps shape and dtype."""
        length = offset + x.shape[-2]
        cos, sin = (table[offset:length] for table in self._tables(length, x.device))
        rotated, passed = x[..., : self.dim].float(), x[..., self.dim :]
        first, second = rotated.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return torch.cat(((rotated * cos + turned * sin).to(x.dtype), passed), dim=-1)
