"""Initializers that replace those of torch.nn.init once base shapes are set.

At base width they draw the same bits as torch. At other widths the formula is evaluated at the base width and
multiplied by the rule of the parameter's role (mup.rules): r^-1/2 for hidden matrices, 1 for input and output.
`generator` is the argument of torch.nn.init.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

from torch import Generator, Tensor
from torch.nn import init

from mup.infshape import InfDim, ShapeError
from mup.init_methods import draw_
from mup.roles import infshape_of, init_rule, role_of
from mup.rules import INNER

__all__ = [
    "constant_std_init_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]


class Sampler(Protocol):
    """Fills a tensor in place with numbers multiplied by `scale`."""

    def __call__(self, tensor: Tensor, *, scale: float = 1.0) -> Any: ...


def _rule(tensor: Tensor, exponent: float = 1.0) -> float | None:
    """Factor on the std of an inner matrix, to the power `exponent`; None for every other role."""
    shape = infshape_of(tensor)
    return init_rule(shape, exponent) if role_of(shape) in INNER and shape.ninf() > 0 else None


def _require_zero_mean(tensor: Tensor, what: str) -> None:
    if _rule(tensor) is not None:
        raise ShapeError(f"{what} on a hidden matrix, {infshape_of(tensor)!r}: in muP its mean must be 0")


def constant_std_init_(tensor: Tensor, sampler_: Sampler) -> Tensor:
    """Fill with a sampler whose numbers do not depend on the width. Raises ShapeError before set_base_shapes."""
    rule = _rule(tensor)
    if rule is None:
        sampler_(tensor)
    else:
        sampler_(tensor, scale=rule)
    return tensor


def uniform_(tensor: Tensor, a: float = 0, b: float = 1, generator: Generator | None = None) -> Tensor:
    """Fill from U(a, b), times r^-1/2 for hidden matrices, which require a = -b. a, b: independent of the width."""
    if a != -b:
        _require_zero_mean(tensor, f"uniform_({a}, {b})")

    def sampler_(tensor: Tensor, *, scale: float = 1.0) -> None:
        init.uniform_(tensor, a * scale, b * scale, generator=generator)

    return constant_std_init_(tensor, sampler_)


def normal_(tensor: Tensor, mean: float = 0, std: float = 1, generator: Generator | None = None) -> Tensor:
    """Fill from N(mean, std^2), times r^-1/2 for hidden matrices, which require mean 0. std: independent of width."""
    if mean != 0:
        _require_zero_mean(tensor, f"normal_ with mean {mean}")

    def sampler_(tensor: Tensor, *, scale: float = 1.0) -> None:
        init.normal_(tensor, mean * scale, std * scale, generator=generator)

    return constant_std_init_(tensor, sampler_)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0,
    std: float = 1,
    a: float = -2,
    b: float = 2,
    generator: Generator | None = None,
) -> Tensor:
    """Fill from N(mean, std^2) truncated to [a, b], times r^-1/2 for hidden matrices, which require mean 0, a = -b."""
    if mean != 0 or a != -b:
        _require_zero_mean(tensor, f"trunc_normal_ with mean {mean} in [{a}, {b}]")

    def sampler_(tensor: Tensor, *, scale: float = 1.0) -> None:
        init.trunc_normal_(tensor, mean * scale, std * scale, a * scale, b * scale, generator=generator)

    return constant_std_init_(tensor, sampler_)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones, for example norm gains. Raises ShapeError for a hidden matrix."""
    _require_zero_mean(tensor, "ones_")
    return init.ones_(tensor)


def eye_(tensor: Tensor) -> Tensor:
    """Fill with the identity. Raises ShapeError for a hidden matrix."""
    _require_zero_mean(tensor, "eye_")
    return init.eye_(tensor)


def _base(dim: InfDim) -> float:
    return float(dim.base_dim if dim.base_dim is not None else dim.dim or 1)


def _fans(tensor: Tensor) -> tuple[float, float]:
    """Fan-in and fan-out of the tensor in its declared layout, including the receptive field."""
    shape = infshape_of(tensor)
    if len(shape) < 2:
        raise ShapeError("fan-in and fan-out are not defined for a tensor of fewer than 2 dimensions")
    if shape.fan_in_dim is None and shape.fan_out_dim is None:
        fan_in, fan_out = init._calculate_fan_in_and_fan_out(tensor)
        return float(fan_in), float(fan_out)
    pair = shape.fanin_fanout()
    own = [i for i, dim in enumerate(shape) if any(dim is one for one in pair)]
    batch = range(min(own))  # dimensions before fan-in and fan-out count matrices (experts); those after are taps
    taps = math.prod(tensor.shape[i] for i in range(tensor.dim()) if i not in own and i not in batch)
    return float(taps * (pair[0].dim or 1)), float(taps * (pair[1].dim or 1))


def _draw(tensor: Tensor, std: float, to_base: float, uniform: bool, generator: Generator | None) -> Tensor:
    """Fill with mean 0 and `std`, times to_base^1/2 (the formula at the base width), times the rule."""
    # a quotient of squares is exactly 1 if the formula grows as the rule does
    std *= math.sqrt(to_base / (_rule(tensor, -2.0) or 1.0))
    return draw_(tensor, "xavier_uniform" if uniform else "xavier_normal", std, generator)


def _xavier(tensor: Tensor, gain: float, uniform: bool, generator: Generator | None) -> Tensor:
    fan_in, fan_out = infshape_of(tensor).fanin_fanout()
    std = gain * math.sqrt(2.0 / sum(_fans(tensor)))
    to_base = ((fan_in.dim or 1) + (fan_out.dim or 1)) / (_base(fan_in) + _base(fan_out))
    return _draw(tensor, std, to_base, uniform, generator)


def _kaiming(
    tensor: Tensor, a: float, mode: str, nonlinearity: Any, uniform: bool, generator: Generator | None
) -> Tensor:
    if 0 in tensor.shape:
        return tensor
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode: expected fan_in or fan_out, got {mode!r}")
    which = 0 if mode == "fan_in" else 1
    std = init.calculate_gain(nonlinearity, a) / math.sqrt(_fans(tensor)[which])
    return _draw(tensor, std, infshape_of(tensor).fanin_fanout()[which].width_mult(), uniform, generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill by Glorot's uniform init at base width, times the rule. gain: independent of the width."""
    return _xavier(tensor, gain, True, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill by Glorot's normal init at base width, times the rule. gain: independent of the width."""
    return _xavier(tensor, gain, False, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill by He's normal init at base width, times the rule. Raises ShapeError before set_base_shapes."""
    return _kaiming(tensor, a, mode, nonlinearity, False, generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill by He's uniform init at base width, times the rule. Raises ShapeError before set_base_shapes."""
    return _kaiming(tensor, a, mode, nonlinearity, True, generator)
