"""Attention with linear biases (ALiBi)."""

from __future__ import annotations


def alibi_slopes(num_heads: int) -> list[float]:
    """Slope of each head: a query at distance d from a key adds -slope * d to its score.

    Press, Smith and Lewis, "Train Short, Test Long", 2022, section 3: for n heads, a power of two, the geometric
    sequence that starts at 2^(-8/n) and has this ratio. For other numbers of heads, their code takes the missing slopes
    from every second one of the next power of two.
    """
    whole = 1 << (num_heads.bit_length() - 1)  # the largest power of two that is not above
    slopes = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(whole)]
    between = [2.0 ** (-4.0 * (i + 1) / whole) for i in range(0, 2 * whole, 2)]
    return slopes + between[: num_heads - whole]
