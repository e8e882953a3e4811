"""Plans: the results of the rules for each parameter, by name, before or after the parameter exists.

`planned` describes the parameters of a model with base shapes. `plan_parameter` needs no tensor: from the declaration
of the layer and two shapes it also plans the initial weights, which `ParameterPlan.draw` creates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from mup.infshape import InfShape, zip_infshape
from mup.init_methods import BaseSizes, InitMethods, draw_
from mup.roles import Declaration, Part, attach, describe, infshape_of, ruled_fan_out
from mup.rules import FROM_WIDTH, Options, Role, Scaling, parameter_scaling

__all__ = ["ModelScale", "ParameterPlan", "ScaledParameter", "plan_parameter", "planned", "unscaled_fan_ins"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ScaledParameter:
    """One parameter, its multipliers relative to the base model, and its factors.

    fan_in_mult, fan_out_mult: r and s. width_mult: multiplier of the width of the parameter.
    in_block: whether the parameter belongs to a residual block.
    """

    name: str
    role: Role
    infshape: InfShape
    fan_in_mult: float
    fan_out_mult: float
    width_mult: float
    in_block: bool
    scaling: Scaling


def planned(
    model: nn.Module,
    options: Options = Options(),
    *,
    width_mult: float | None = None,
    depth_mult: float = 1.0,
    in_block: Callable[[str], bool] | None = None,
) -> Iterator[tuple[nn.Parameter, ScaledParameter]]:
    """Iterate over every parameter of the model with its plan, in the order of named_parameters.

    width_mult: m of the model for the eps of matrices; by default that of each matrix.
    in_block: whether a name belongs to a residual block, whose learning rate and eps scale with `depth_mult`.
    Raises ShapeError before set_base_shapes.
    """
    attach(model)
    for name, parameter in model.named_parameters():
        path, _, _ = name.rpartition(".")
        shape = infshape_of(parameter, name)
        role, r, s, own = describe(shape, model.get_submodule(path))
        m = own if width_mult is None else width_mult
        inside = in_block is not None and in_block(name)
        scaling = parameter_scaling(
            role,
            fan_in_mult=r,
            fan_out_mult=ruled_fan_out(role, s, own),
            width_mult=m,
            depth_mult=depth_mult,
            in_block=inside,
            options=options,
        )
        yield parameter, ScaledParameter(name, role, shape, r, s, own, inside, scaling)


@dataclass(frozen=True)
class ModelScale:
    """Scale of a whole model relative to its base: m, mL, the options of the rules, and the sizes in init formulas.

    init_scale: factor on sigma of every matrix.
    zero_queries: whether parts named "query" start at zero.
    zero_values: whether parts named "value" start at zero, as a readout does in a coordinate check.
    """

    base: BaseSizes
    width_mult: float = 1.0
    depth_mult: float = 1.0
    options: Options = Options()
    init: InitMethods = InitMethods()
    init_scale: float = 1.0
    zero_queries: bool = False
    zero_values: bool = False


@dataclass(frozen=True)
class ParameterPlan(ScaledParameter):
    """Plan of one parameter, made before the parameter exists. Shapes are global.

    init_std: absolute standard deviation. parts: rows of a fused matrix with another scale, and the factor on them.
    """

    declaration: Declaration
    shape: Shape
    base_shape: Shape
    init_method: str
    init_std: float
    parts: tuple[tuple[Part, float], ...] = ()

    def draw(self, generator: Generator) -> Tensor:
        """Draw the whole initial tensor, fp32 on the CPU: [*shape]."""
        if self.init_method == "ones":
            return torch.ones(self.shape)
        if self.init_method == "zeros" or self.init_std == 0.0:
            return torch.zeros(self.shape)
        weight = torch.empty(self.shape)
        for matrix in self._matrices(weight):
            draw_(matrix, self.init_method, self.init_std, generator)
        for part, factor in self.parts:
            if factor == 0.0:
                part.of(weight).zero_()  # a product with 0 would leave negative zeros
            else:
                part.of(weight).mul_(factor)
        return weight

    def _matrices(self, weight: Tensor) -> Iterable[Tensor]:
        """The matrices of a weight. Dimensions before fan-in and fan-out count them, for example experts."""
        dims = self.infshape.fan_in_dim, self.infshape.fan_out_dim
        stacked = min(dim for dim in dims if dim is not None) if None not in dims else 0
        return weight.flatten(0, stacked - 1).unbind() if stacked else (weight,)


def plan_parameter(
    name: str,
    shape: Sequence[int],
    declaration: Declaration,
    base_shape: Sequence[int],
    base_declaration: Declaration,
    model: ModelScale,
    *,
    in_block: bool = False,
) -> ParameterPlan:
    """Plan one parameter from its declaration and shape in the model and in the base model.

    Raises TypeError without a declared role, and ShapeError if the shapes do not fit together.
    """
    if declaration.role is None:
        raise TypeError(f"parameter {name} has no declared role")
    infshape = zip_infshape(base_shape, shape, fin_if_same=False)
    infshape.declare(declaration.role, declaration.fan_in_dim, declaration.fan_out_dim)
    role, r, s, own = describe(infshape)
    # parts of a fused matrix have their own fan-out
    slower = role is Role.HIDDEN and s < r and not declaration.parts
    scaling = _scaling(Role.VALUE if slower else role, r, s, model, in_block)
    method, std = _initial(declaration, infshape, model)
    factors = [
        (part, _part_factor(part, part.count(shape[0]) / base.count(base_shape[0]), role, r, s, model))
        for part, base in zip(declaration.parts, base_declaration.parts, strict=True)
    ]
    return ParameterPlan(
        name,
        role,
        infshape,
        r,
        s,
        own,
        in_block,
        scaling,
        declaration,
        tuple(shape),
        tuple(base_shape),
        method,
        std * (model.init_scale * scaling.init_std),
        tuple((part, factor) for part, factor in factors if factor != 1.0),
    )


def _scaling(role: Role, r: float, s: float, model: ModelScale, in_block: bool = False) -> Scaling:
    return parameter_scaling(
        role,
        fan_in_mult=r,
        fan_out_mult=s,
        width_mult=model.width_mult,
        depth_mult=model.depth_mult,
        in_block=in_block,
        options=model.options,
    )


def _initial(declaration: Declaration, infshape: InfShape, model: ModelScale) -> tuple[str, float]:
    """Init method, and std in the base model."""
    if declaration.init in ("zeros", "ones"):
        return declaration.init, 0.0
    method = model.init.of(declaration)
    fan_in, fan_out = (int(dim.base_dim or 1) for dim in infshape.fanin_fanout())
    return method, model.init.base_std(method, fan_in, fan_out, model.base)


def _part_factor(part: Part, s: float, role: Role, r: float, s_of_all: float, model: ModelScale) -> float:
    """Init std of the part divided by that of the whole matrix."""
    if part.name == "query" and model.zero_queries:
        return 0.0
    if part.name == "value" and model.zero_values:
        return 0.0
    if part.role is Role.VALUE and (s >= r or not model.options.mup):
        return 1.0  # keys and values that grow with the model are hidden
    whole = _scaling(role, r, s_of_all, model).init_std
    return _scaling(part.role, r, s, model).init_std / whole


def unscaled_fan_ins(plans: Iterable[ParameterPlan]) -> list[str]:
    """Names of matrices with the fan-in of the base although the model is larger, which is possibly a mistake."""
    plans = list(plans)
    if all(plan.shape == plan.base_shape for plan in plans):
        return []
    return [p.name for p in plans if p.role in FROM_WIDTH and p.fan_in_mult == 1.0]
