"""From declarations and base shapes to one plan a parameter: multipliers, initial std, factors on lr, eps, decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron.architecture import Widths
from megatron.errors import ConfigError
from megatron.parametrization.declare import Declaration
from megatron.parametrization.widths import Multipliers
from mup.rules import Options, Role, Scaling, parameter_scaling

Shape = tuple[int, ...]

MATRIX_ROLES = (Role.INPUT, Role.HIDDEN, Role.OUTPUT, Role.POSITION_BIAS)


@dataclass(frozen=True)
class InitMethods:
    """NeoX's names of the two init methods, and the std that `normal` and `scaled_normal` use."""

    matrix: str = "normal"
    output_matrix: str = "scaled_normal"
    std: float = 0.02

    def method(self, declaration: Declaration) -> str:
        return self.output_matrix if declaration.init == "output_matrix" else self.matrix


@dataclass(frozen=True)
class ParameterPlan:
    """All that is decided about one parameter before it exists. Shapes are global; init_std is absolute.

    value_std: factor on the initial values' rows of a fused QKV matrix, see `Parametrization.value_std`.
    """

    name: str
    declaration: Declaration
    shape: Shape
    base_shape: Shape
    fan_in_mult: float
    fan_out_mult: float
    in_block: bool
    scaling: Scaling
    init_method: str
    init_std: float
    value_std: float = 1.0

    @property
    def role(self) -> Role:
        return self.declaration.role


def in_block(name: str) -> bool:
    """Whether a parameter belongs to a residual block, by its layout-independent name."""
    return name.startswith("layers.")


def fans(shape: Shape, fan_in_dim: int) -> tuple[int, int]:
    """fan_in and fan_out of a matrix; a vector has both equal to its length."""
    if len(shape) < 2:
        return shape[0], shape[0]
    fan_in = shape[fan_in_dim]
    return fan_in, math.prod(shape) // fan_in


def base_std(method: str, std: float, shape: Shape, fan_in_dim: int, base: Widths) -> float:
    """Standard deviation of one entry at the base model, NeoX's formulas.

    small_init: sqrt(2 / 5h), Nguyen and Salazar, arXiv:1910.05895. wang_init: 2 / (L sqrt(h)), Wang's GPT-J.
    scaled_normal: std / sqrt(2L), Megatron-LM. xavier: sqrt(2 / (fan_in + fan_out)), Glorot and Bengio 2010.
    orthogonal: entries of a [rows, cols] matrix with orthonormal rows or columns have std 1 / sqrt(max(rows, cols)).
    """
    fan_in, fan_out = fans(shape, fan_in_dim)
    hidden_size, num_layers = base.hidden_size, base.num_layers
    formulas = {
        "normal": lambda: std,
        "scaled_normal": lambda: std / math.sqrt(2.0 * num_layers),
        "single_residual_scaled_normal": lambda: std / math.sqrt(num_layers),
        "small_init": lambda: math.sqrt(2.0 / (5.0 * hidden_size)),
        "wang_init": lambda: 2.0 / (num_layers * math.sqrt(hidden_size)),
        "xavier_uniform": lambda: math.sqrt(2.0 / (fan_in + fan_out)),
        "xavier_normal": lambda: math.sqrt(2.0 / (fan_in + fan_out)),
        "orthogonal": lambda: 1.0 / math.sqrt(max(fan_in, fan_out)),
        "scaled_orthogonal": lambda: 1.0 / math.sqrt(max(fan_in, fan_out)) / math.sqrt(2.0 * num_layers),
    }
    if method not in formulas:
        raise ConfigError(f"init-method {method!r} is unknown; known: {', '.join(formulas)}")
    return formulas[method]()


@dataclass(frozen=True)
class Parametrization:
    """One model's parametrization. In SP (`options.mup` false) base is the model itself."""

    widths: Widths
    base: Widths
    options: Options = Options()
    init: InitMethods = InitMethods()
    multipliers: Multipliers = Multipliers()
    query_zero_init: bool = False
    value_zero_init: bool = False

    @property
    def value_std(self) -> float:
        """Factor on the initial std of the values, where key-value heads grow more slowly than the model.

        A matrix' spectral norm should be sqrt(fan_out / fan_in) (Yang et al., arXiv:2310.17813, condition 1), and
        r^-1/2 presumes that both grow alike. With fixed key-value heads the values map a width to a finite
        dimension, like a readout (Tensor Programs V, arXiv:2203.03466, table 8): then it is r^-1, which is r^-1/2
        more. `value_zero_init` (for the coordinate check, as for a readout) makes such values start at zero.
        """
        if not self.options.mup:
            return 1.0
        grows = (self.widths.num_kv_heads * self.widths.head_dim) / (self.base.num_kv_heads * self.base.head_dim)
        factor = min(1.0, math.sqrt(grows / self.widths.multiplier(self.base)))
        return 0.0 if self.value_zero_init and factor < 1.0 else factor

    def plan(
        self,
        declared: Mapping[str, Declaration],
        shapes: Mapping[str, Shape],
        base_shapes: Mapping[str, Shape],
    ) -> dict[str, ParameterPlan]:
        """Plans by name, in the model's order. `base_shapes` come from the same model built with the base widths."""
        return {
            name: self._plan_one(name, declared[name], tuple(shapes[name]), tuple(base_shapes[name])) for name in shapes
        }

    def _plan_one(self, name: str, declaration: Declaration, shape: Shape, base_shape: Shape) -> ParameterPlan:
        fan_in, fan_out = fans(shape, declaration.fan_in_dim)
        base_fan_in, base_fan_out = fans(base_shape, declaration.fan_in_dim)
        scaling = parameter_scaling(
            declaration.role,
            fan_in_mult=fan_in / base_fan_in,
            fan_out_mult=fan_out / base_fan_out,
            width_mult=self.widths.multiplier(self.base),
            depth_mult=self.widths.depth_multiplier(self.base),
            in_block=in_block(name),
            options=self.options,
        )
        method: str = declaration.init
        std = 0.0
        if declaration.init in ("matrix", "output_matrix"):
            method = self.init.method(declaration)
            std = base_std(method, self.init.std, base_shape, declaration.fan_in_dim, self.base)
            std *= self.multipliers.init_scale * scaling.init_std
        return ParameterPlan(
            name,
            declaration,
            shape,
            base_shape,
            fan_in / base_fan_in,
            fan_out / base_fan_out,
            in_block(name),
            scaling,
            method,
            std,
            1.0 if declaration.value_rows is None else self.value_std,
        )


def unscaled_dimensions(plans: Sequence[ParameterPlan]) -> list[str]:
    """Hidden matrices whose fan-in is equal in base and target although the model as a whole grew: worth a word."""
    if all(plan.shape == plan.base_shape for plan in plans):
        return []
    return [
        plan.name
        for plan in plans
        if plan.role in (Role.HIDDEN, Role.OUTPUT) and plan.fan_in_mult == 1.0 and len(plan.shape) > 1
    ]
