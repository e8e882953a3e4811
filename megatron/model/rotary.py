"""Rotary position embedding, in the half-rotation form of GPT-NeoX and Llama."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron.architecture import RopeScaling
from megatron.errors import ConfigError


def inverse_frequencies(dim: int, base: float, scaling: RopeScaling | None = None, length: int = 0) -> Tensor:
    """Angle per position of each pair of entries, fp32 [dim / 2].

    length: number of positions in the context, which only `dynamic` scaling uses.
    """
    if scaling is not None and scaling.rope_type == "dynamic":
        stretch = scaling.factor * max(length, scaling.original_positions) / scaling.original_positions
        base = base * (stretch - (scaling.factor - 1)) ** (dim / (dim - 2))
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None or scaling.rope_type == "dynamic":
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    # the share that keeps its frequency: 1 below the wavelength original / high, 0 above original / low
    rotations = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class RotaryEmbedding:
    """Rotates the first `dim` entries of every head (Su et al., RoFormer, arXiv:2104.09864, eq. 34).

    The class is not a module and has no buffer: its fp32 table must survive construction on the meta device and
    casts of the model to half precision.
    """

    def __init__(self, dim: int, base: float = 10000.0, scaling: RopeScaling | None = None) -> None:
        if dim % 2:
            raise ConfigError(f"rotary-pct: expected an even number of rotated entries per head, got {dim}")
        if dim == 2 and scaling is not None and scaling.rope_type == "dynamic":
            raise ConfigError("rope_scaling: rope_type dynamic needs more than 2 rotated entries per head")
        self.dim = dim
        self.base = base
        self.scaling = scaling
        self._table: tuple[Tensor, Tensor] | None = None

    def prepare(self, length: int, device: torch.device) -> None:
        """Create the table for `length` positions now, so that a compiled block is not compiled again later."""
        self._tables(length, device)

    def _tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [length, dim]."""
        if self.scaling is not None and self.scaling.rope_type == "dynamic":
            if length > self.scaling.original_positions:
                return self._make_tables(length, length, device)  # each length has its own frequencies
        if self._table is None or self._table[0].shape[0] < length or self._table[0].device != device:
            rows = 1 << (length - 1).bit_length()  # sampling does not recompute the table for each token
            with torch.inference_mode(False):  # a table created while sampling must also work in training
                self._table = self._make_tables(rows, length, device)
        cos, sin = self._table
        return cos[:length], sin[:length]

    def _make_tables(self, rows: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        frequencies = inverse_frequencies(self.dim, self.base, self.scaling, length)
        angle = torch.outer(torch.arange(rows, dtype=torch.float32), frequencies)
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
