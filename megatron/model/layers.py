"""Linear layers and norms that declare the role of their parameters."""

from __future__ import annotations

from torch import nn

from megatron.errors import ConfigError
from megatron.parametrization.declare import Declaration, declare
from mup.rules import Role

_GAIN = Declaration(Role.VECTOR, "ones")
_BIAS = Declaration(Role.VECTOR, "zeros")


def linear(in_features: int, out_features: int, bias: bool, declaration: Declaration) -> nn.Linear:
    """A Linear whose weight is [out_features, in_features] with the given declaration, and whose bias is a vector."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    declare(layer.weight, declaration)
    if bias:
        declare(layer.bias, _BIAS)
    return layer


def make_norm(kind: str, size: int, epsilon: float, bias: bool) -> nn.Module:
    """LayerNorm or RMSNorm over the last dimension; gain and bias are vectors."""
    layer: nn.LayerNorm | nn.RMSNorm
    if kind == "layernorm":
        layer = nn.LayerNorm(size, eps=epsilon, bias=bias)
    elif kind == "rmsnorm":
        layer = nn.RMSNorm(size, eps=epsilon)
    else:
        raise ConfigError(f"norm {kind!r} is not supported; use layernorm or rmsnorm")
    declare(layer.weight, _GAIN)
    if isinstance(layer, nn.LayerNorm) and bias:
        declare(layer.bias, _BIAS)
    return layer
