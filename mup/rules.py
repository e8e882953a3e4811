"""The muP rules as one table, from the role and width multipliers of a parameter to its scalings.

Symbols, relative to the base model, in global (unsharded) sizes:
`r` = fan_in / base fan_in and `s` = fan_out / base fan_out of the same matrix, `m` = hidden / base hidden,
`mL` = layers / base layers. A cell of the table holds the exponents of r, s and m. At r = s = m = 1 every factor is
exactly 1.0, so muP at base width equals the standard parametrization (SP) bit for bit.

VALUE is the role of a matrix inside the network whose fan-out grows more slowly than its fan-in: keys and values of a
fixed number of key-value heads, and the first matrix of an MLP of fixed inner width. By [SPEC] condition 1 the spectral
norm of a weight is sqrt(fan_out / fan_in). A random weight with entries of size std has the norm std * sqrt(fan_in) if
fan_in is the larger dimension, so std scales as s^1/2 / r. This is HIDDEN's r^-1/2 for s = r. For a finite fan-out it
is r^-1, which [TP5] Table 8 gives for a map from a width to a finite dimension. All other cells are those of HIDDEN.
With HIDDEN's std the excess of r^1/2 becomes visible once the layers around the matrix have pulled its input along the
few rows of the initial weight. A matrix whose fan-out grows faster keeps r^-1/2.

The eps column: in this form, with the 1/m of the readout in the forward pass, the gradient of every parameter with an
infinite dimension falls as 1/m. Adam's update g / (|g| + eps) keeps its size if eps falls with g. A vector takes the
ratio of its own dimension, so gains of a QK norm at a fixed head dimension, summed over all heads, keep eps.

Sources:
  [TP5]  Yang et al., Tensor Programs V, arXiv:2203.03466, Table 8 (the form with readout multiplier), App. B.
  [TP6]  Yang et al., Tensor Programs VI: Feature Learning in Infinite-Depth Networks, arXiv:2310.02244, Table 1.
  [CP]   Dey et al., Don't be lazy: CompleteP, arXiv:2505.01618, Table 1 (depth, AdamW eps and weight decay).
  [CDP]  Mlodozeniec et al., Completed Hyperparameter Transfer, arXiv:2512.22382 (eps of all modules, QK norms).
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
    """Role of a parameter in the network. The layer that owns the parameter declares it."""

    INPUT = "input"  # finite fan-in, infinite fan-out: token and learned position embeddings
    HIDDEN = "hidden"  # infinite by infinite: qkv, attention output, mlp matrices, experts
    OUTPUT = "output"  # infinite fan-in, finite fan-out: readout, router, value head
    VALUE = "value"  # like hidden, but the fan-out is fixed or grows more slowly than the fan-in
    VECTOR = "vector"  # one infinite dimension, no matrix product: biases, norm gains
    POSITION_BIAS = "position_bias"  # no infinite dimension: relative position bias


INNER = frozenset({Role.HIDDEN, Role.VALUE})  # matrices inside the network
FROM_WIDTH = INNER | {Role.OUTPUT}  # roles whose fan-in is a width


class Family(str, enum.Enum):
    """Optimizers that share one column of the table."""

    ADAM = "adam"  # Adam, AdamW
    SIGN = "sign"  # Lion and other sign methods: like Adam, without eps
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
        """Return this monomial to the power `exponent`."""
        return Power(self.fan_in * exponent, self.fan_out * exponent, self.width * exponent)


ONE = Power()


@dataclass(frozen=True)
class Cell:
    """One row of the table of one optimizer: the factors on sigma, eta, eps and lambda, and the forward factor.

    weight_decay: for the coupled form p -= lr * wd * p in mode `scaled`. None means that the role is not decayed.
    """

    init_std: Power = ONE
    lr: Power = ONE
    eps: Power = ONE
    weight_decay: Power | None = ONE
    forward: Power = ONE


_READOUT = Power(width=-1)  # [TP5] Table 8: logits x 1/m, weights of constant size
_HIDDEN_STD = Power(fan_in=-0.5)  # [TP5] Table 8: variance 1 / fan_in
_VALUE_STD = Power(fan_in=-1, fan_out=0.5)  # [SPEC] condition 1; [TP5] Table 8 where fan-out is finite

_EPS = Power(width=-1)  # [CP] Table 1, [CDP]: gradients fall as 1/m
# lr 1/fan_in: [TP5] Table 8; wd: lr*wd constant
_ADAM_HIDDEN = Cell(init_std=_HIDDEN_STD, lr=Power(fan_in=-1), eps=_EPS, weight_decay=Power(fan_in=1))
_ADAM: dict[Role, Cell] = {
    Role.INPUT: Cell(eps=_EPS),  # [TP5] Table 8
    Role.HIDDEN: _ADAM_HIDDEN,
    Role.VALUE: replace(_ADAM_HIDDEN, init_std=_VALUE_STD),
    Role.OUTPUT: Cell(eps=_EPS, forward=_READOUT),  # [TP5] Table 8
    # [TP5] Table 8, biases; vectors are not decayed; for a vector r and s are the ratio of its own dimension
    Role.VECTOR: Cell(eps=Power(fan_in=-1), weight_decay=None),
    Role.POSITION_BIAS: Cell(),  # no infinite dimension, so no factor: [TP5] App. B
}

_SIGN: dict[Role, Cell] = {role: replace(cell, eps=ONE) for role, cell in _ADAM.items()}  # [TP5] App. B.3; no eps

_SGD_HIDDEN = Cell(init_std=_HIDDEN_STD, lr=Power(fan_in=-1, fan_out=1), weight_decay=Power(fan_in=1, fan_out=-1))
_SGD: dict[Role, Cell] = {  # [TP5] Table 8, SGD column; weight decay inverse to the lr factor
    Role.INPUT: Cell(lr=Power(fan_out=1), weight_decay=Power(fan_out=-1)),
    Role.HIDDEN: _SGD_HIDDEN,
    Role.VALUE: replace(_SGD_HIDDEN, init_std=_VALUE_STD),
    Role.OUTPUT: Cell(lr=Power(fan_in=1), weight_decay=Power(fan_in=-1), forward=_READOUT),
    Role.VECTOR: Cell(lr=Power(fan_in=1), weight_decay=None),  # 1 if its dimension is finite
    Role.POSITION_BIAS: Cell(),  # no infinite dimension
}

_MUON_HIDDEN = Cell(
    init_std=_HIDDEN_STD, lr=Power(fan_in=-0.5, fan_out=0.5), weight_decay=Power(fan_in=0.5, fan_out=-0.5)
)
_MUON: dict[Role, Cell] = {  # [SPEC] condition 1: |dW|_spectral ~ sqrt(fan_out / fan_in); other roles as for Adam
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
    """Options of the rules for a whole model.

    weight_decay_mode: `scaled` (lr*wd independent of width), `constant` (lambda everywhere) or `independent`
        (p -= wd * (rate / peak rate) * p: independent of the peak rate and of the factor on lr, [WD]). Vectors are
        never decayed.
    depth_alpha: 0 (off), 0.5 (depth-muP [TP6]) or 1 (CompleteP [CP]).
    Raises ValueError for any other value.
    """

    mup: bool = True
    optimizer: str = "adamw"
    weight_decay_mode: str = "scaled"
    eps_scaling: bool = True
    depth_alpha: float = 0.0
    readout_zero_init: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in FAMILY_OF_OPTIMIZER:
            raise ValueError(f"optimizer: expected one of {', '.join(FAMILY_OF_OPTIMIZER)}, got {self.optimizer!r}")
        if self.weight_decay_mode not in ("scaled", "constant", "independent"):
            raise ValueError(
                f"weight_decay_mode: expected scaled, constant or independent, got {self.weight_decay_mode!r}"
            )
        if self.depth_alpha not in (0.0, 0.5, 1.0):
            raise ValueError(f"depth_alpha: expected 0 (off), 0.5 (depth-muP) or 1 (CompleteP), got {self.depth_alpha}")

    @property
    def family(self) -> Family:
        return FAMILY_OF_OPTIMIZER[self.optimizer]


@dataclass(frozen=True)
class Scaling:
    """Factors on the base values sigma, eta, eps and lambda of one parameter, and its forward factor."""

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
    """Scalings of one parameter.

    fan_in_mult, fan_out_mult: r and s of the matrix. width_mult: m. depth_mult: mL.
    in_block: whether the parameter belongs to a residual block. Matrices, biases and norms do; embeddings, the final
    norm and the readout do not.
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
    """Depth factors of the parameters of a block: on lr, on eps (mL^-alpha), and on the residual branch (mL^-alpha).

    The factor on lr is mL^(alpha-1) for optimizers whose updates do not scale with gradients. Under SGD it is
    mL^(2 alpha-1), because gradients inside a branch also carry the factor of the branch. With alpha 0 (off) every
    factor is 1. Source: [TP6] Table 1 (alpha 1/2: Adam 1/sqrt(L), SGD 1), [CP] Table 1 (alpha in [1/2, 1]).
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
