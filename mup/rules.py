"""The muP rules as one table: from a parameter's role and width multipliers to its scalings.

Symbols, all measured against the base model in global (unsharded) sizes:
`r` = fan_in / base fan_in and `s` = fan_out / base fan_out of this very matrix, `m` = hidden / base hidden,
`mL` = layers / base layers. A cell of the table holds the exponents of r, s and m; at r = s = m = 1 every
factor is exactly 1.0, so that muP at base width is the standard parametrization (SP) bit for bit.

VALUE is for values whose key-value heads grow more slowly than the model. By [SPEC] condition 1 a weight's spectral
norm is sqrt(fan_out / fan_in). A random weight of entries of size std has the norm std * sqrt(fan_in) when fan_in is
the larger dimension, so that std grows as s^1/2 / r: HIDDEN's r^-1/2 where s = r, and r^-1 for a fixed number of
heads, which [TP5] Table 8 gives for a map from a width to a finite dimension. Everything else is as for HIDDEN.
With HIDDEN's std, the excess of r^1/2 shows once all query heads, whose number grows, have pulled the input along the
few rows of the initial weight: the README has measurements.

Sources:
  [TP5]  Yang et al., Tensor Programs V, arXiv:2203.03466, Table 8 (the form with readout multiplier), App. B.
  [TP6]  Yang et al., Tensor Programs VI: Feature Learning in Infinite-Depth Networks, arXiv:2310.02244, Table 1.
  [CP]   Dey et al., Don't be lazy: CompleteP, arXiv:2505.01618, Table 1 (depth, AdamW eps and weight decay).
  [SPEC] Yang, Simon, Bernstein, A Spectral Condition for Feature Learning, arXiv:2310.17813 (Muon).
  [WD]   Wortsman et al., Small-scale proxies, arXiv:2309.14322 (independent weight decay).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


class Role(str, enum.Enum):
    """What a parameter is to the network; declared by the layer that owns it."""

    INPUT = "input"  # finite fan-in, infinite fan-out: token and learned position embeddings
    HIDDEN = "hidden"  # infinite by infinite: qkv, attention output, mlp matrices, experts
    OUTPUT = "output"  # infinite fan-in, finite fan-out: readout, router, value head
    VALUE = "value"  # values of key-value heads whose number is fixed, or grows more slowly than the model
    VECTOR = "vector"  # one infinite dimension, no matrix product: biases, norm gains
    POSITION_BIAS = "position_bias"  # no infinite dimension: relative position bias


INNER = frozenset({Role.HIDDEN, Role.VALUE})  # matrices inside the network, one of whose dimensions they sum over
FROM_WIDTH = INNER | {Role.OUTPUT}  # roles whose fan-in is a width


class Family(str, enum.Enum):
    """Optimizers that share one column of the table."""

    ADAM = "adam"  # Adam, AdamW
    SIGN = "sign"  # Lion and other sign methods: as Adam, without eps
    SGD = "sgd"
    MUON = "muon"  # orthogonalised update of spectral norm 1 on hidden matrices; Adam on the rest


FAMILY_OF_OPTIMIZER: Mapping[str, Family] = MappingProxyType(
    {"adam": Family.ADAM, "adamw": Family.ADAM, "lion": Family.SIGN, "sgd": Family.SGD, "muon": Family.MUON}
)


@dataclass(frozen=True)
class Power:
    """A monomial r^fan_in * s^fan_out * m^width."""

    fan_in: float = 0.0
    fan_out: float = 0.0
    width: float = 0.0

    def __call__(self, fan_in_mult: float, fan_out_mult: float, width_mult: float) -> float:
        return float(fan_in_mult**self.fan_in * fan_out_mult**self.fan_out * width_mult**self.width)

    def raised(self, exponent: float) -> Power:
        """This monomial to the power `exponent`."""
        return Power(self.fan_in * exponent, self.fan_out * exponent, self.width * exponent)


ONE = Power()


@dataclass(frozen=True)
class Cell:
    """One row of one optimizer's table: what multiplies sigma, eta, eps and lambda, and the forward factor.

    `weight_decay` is for the coupled form p -= lr * wd * p in mode `scaled`; None: the role is not decayed.
    """

    init_std: Power = ONE
    lr: Power = ONE
    eps: Power = ONE
    weight_decay: Power | None = ONE
    forward: Power = ONE


_READOUT = Power(width=-1)  # [TP5] Table 8: logits x 1/m, weights of constant size
_HIDDEN_STD = Power(fan_in=-0.5)  # [TP5] Table 8: variance 1 / fan_in
_VALUE_STD = Power(fan_in=-1, fan_out=0.5)  # [SPEC] condition 1; [TP5] Table 8 where fan-out is finite

# lr 1/fan_in: [TP5] Table 8; eps 1/m as gradients of hidden weights shrink so: [CP] Table 1; wd: lr*wd constant
_ADAM_HIDDEN = Cell(init_std=_HIDDEN_STD, lr=Power(fan_in=-1), eps=Power(width=-1), weight_decay=Power(fan_in=1))
_ADAM: dict[Role, Cell] = {
    Role.INPUT: Cell(),  # [TP5] Table 8
    Role.HIDDEN: _ADAM_HIDDEN,
    Role.VALUE: replace(_ADAM_HIDDEN, init_std=_VALUE_STD),
    Role.OUTPUT: Cell(forward=_READOUT),  # [TP5] Table 8
    Role.VECTOR: Cell(weight_decay=None),  # [TP5] Table 8, biases; decay: a vector has no width to decay for
    Role.POSITION_BIAS: Cell(),  # no infinite dimension, so no factor: [TP5] App. B
}

_SIGN: dict[Role, Cell] = {role: replace(cell, eps=ONE) for role, cell in _ADAM.items()}  # [TP5] App. B.3; no eps

_SGD_HIDDEN = Cell(init_std=_HIDDEN_STD, lr=Power(fan_in=-1, fan_out=1), weight_decay=Power(fan_in=1, fan_out=-1))
_SGD: dict[Role, Cell] = {  # [TP5] Table 8, SGD column; weight decay inverse to the lr factor
    Role.INPUT: Cell(lr=Power(width=1), weight_decay=Power(width=-1)),
    Role.HIDDEN: _SGD_HIDDEN,
    Role.VALUE: replace(_SGD_HIDDEN, init_std=_VALUE_STD),
    Role.OUTPUT: Cell(lr=Power(width=1), weight_decay=Power(width=-1), forward=_READOUT),
    Role.VECTOR: Cell(lr=Power(width=1), weight_decay=None),
    Role.POSITION_BIAS: Cell(),  # no infinite dimension
}

_MUON_HIDDEN = Cell(
    init_std=_HIDDEN_STD, lr=Power(fan_in=-0.5, fan_out=0.5), weight_decay=Power(fan_in=0.5, fan_out=-0.5)
)
_MUON: dict[Role, Cell] = {  # [SPEC] condition 1: |dW|_spectral ~ sqrt(fan_out / fan_in); the rest is Adam's
    **_ADAM,
    Role.HIDDEN: _MUON_HIDDEN,
    Role.VALUE: replace(_MUON_HIDDEN, init_std=_VALUE_STD),
}

TABLE: Mapping[Family, Mapping[Role, Cell]] = MappingProxyType(
    {
        Family.ADAM: MappingProxyType(_ADAM),
        Family.SIGN: MappingProxyType(_SIGN),
        Family.SGD: MappingProxyType(_SGD),
        Family.MUON: MappingProxyType(_MUON),
    }
)


@dataclass(frozen=True)
class Options:
    """Choices that hold for a whole model.

    weight_decay_mode: `scaled` (lr*wd independent of width), `constant` (lambda everywhere),
        `independent` (p -= wd * p, not times lr: [WD]); vectors are never decayed.
    depth_alpha: 0 off, 0.5 depth-muP [TP6], 1 CompleteP [CP].
    """

    mup: bool = True
    optimizer: str = "adamw"
    weight_decay_mode: str = "scaled"
    eps_scaling: bool = True
    depth_alpha: float = 0.0
    readout_zero_init: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in FAMILY_OF_OPTIMIZER:
            raise ValueError(f"optimizer {self.optimizer!r} has no muP rule; known: {', '.join(FAMILY_OF_OPTIMIZER)}")
        if self.weight_decay_mode not in ("scaled", "constant", "independent"):
            raise ValueError(f"weight_decay_mode {self.weight_decay_mode!r} is none of scaled, constant, independent")
        if self.depth_alpha not in (0.0, 0.5, 1.0):
            raise ValueError(f"depth_alpha {self.depth_alpha} is none of 0 (off), 0.5 (depth-muP), 1 (CompleteP)")

    @property
    def family(self) -> Family:
        return FAMILY_OF_OPTIMIZER[self.optimizer]


@dataclass(frozen=True)
class Scaling:
    """Factors on the base values sigma, eta, eps, lambda of one parameter, and its forward factor."""

    init_std: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0
    forward: float = 1.0


def parameter_scaling(
    role: Role,
    *,
    fan_in_mult: float = 1.0,
    fan_out_mult: float = 1.0,
    width_mult: float = 1.0,
    depth_mult: float = 1.0,
    in_block: bool = False,
    options: Options = Options(),
) -> Scaling:
    """The scalings of one parameter.

    fan_in_mult, fan_out_mult: r and s of this matrix. width_mult: m. depth_mult: mL. in_block: whether the
    parameter belongs to a residual block (matrices, biases and norms; not embeddings, final norm or readout).
    """
    cell = TABLE[options.family][role]
    zero_init = role is Role.OUTPUT and options.readout_zero_init
    if not options.mup:
        return Scaling(init_std=0.0 if zero_init else 1.0, weight_decay=0.0 if cell.weight_decay is None else 1.0)
    mults = (fan_in_mult, fan_out_mult, width_mult)
    depth = depth_scaling(depth_mult, options.depth_alpha, options.family) if in_block else Scaling()
    if cell.weight_decay is None:
        weight_decay = 0.0
    else:
        weight_decay = cell.weight_decay(*mults) if options.weight_decay_mode == "scaled" else 1.0
    return Scaling(
        init_std=0.0 if zero_init else cell.init_std(*mults),
        lr=cell.lr(*mults) * depth.lr,
        eps=(cell.eps(*mults) if options.eps_scaling else 1.0) * depth.eps,
        weight_decay=weight_decay,
        forward=cell.forward(*mults),
    )


def depth_scaling(depth_mult: float, alpha: float, family: Family = Family.ADAM) -> Scaling:
    """Depth factors of a block's parameters: lr, eps mL^-alpha, and the residual branch's forward mL^-alpha.

    lr is mL^(alpha-1) where updates do not scale with gradients, and mL^(2 alpha-1) under SGD, as gradients inside a
    branch carry its factor too. Source: [TP6] Table 1 (alpha 1/2: Adam 1/sqrt(L), SGD 1), [CP] Table 1 (alpha in
    [1/2, 1]). alpha 0 means off: every factor is 1.
    """
    if alpha == 0:
        return Scaling()
    power = 2 * alpha - 1 if family is Family.SGD else alpha - 1
    return Scaling(lr=depth_mult**power, eps=depth_mult**-alpha, forward=depth_mult**-alpha)


def attention_scale(head_dim: int, base_head_dim: int, temperature: float = 1.0) -> float:
    """Factor on q.k: sqrt(base_head_dim) / (head_dim * temperature); 1/sqrt(head_dim) at base. [TP5] Definition 4.1."""
    return (1.0 / math.sqrt(base_head_dim)) * (base_head_dim / head_dim) / temperature


def readout_mult(width_mult: float, temperature: float = 1.0) -> float:
    """Factor on the logits, tied or untied: 1 / (m * temperature). [TP5] Table 8."""
    return 1.0 / (width_mult * temperature)
