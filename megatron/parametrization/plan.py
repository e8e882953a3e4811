"""The parametrization of a GPT: its widths, the widths of its base, and the plan of every parameter by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron.architecture import Widths
from megatron.parametrization.widths import Multipliers
from mup.init_methods import BaseSizes, InitMethods
from mup.plan import ModelScale, ParameterPlan, plan_parameter
from mup.roles import Declaration
from mup.rules import Options

Shape = tuple[int, ...]
Declared = Mapping[str, tuple[Shape, Declaration]]  # global name -> global shape, declaration


def in_block(name: str) -> bool:
    """Whether a parameter belongs to a residual block, by its layout-independent name."""
    return name.startswith("layers.")


@dataclass(frozen=True)
class Parametrization:
    """Parametrization of one model. In SP (`options.mup` false) the base is the model itself.

    query_zero_init: whether queries start at zero.
    value_zero_init: whether values start at zero, as a readout does in a coordinate check.
    """

    widths: Widths
    base: Widths
    options: Options = Options()
    init: InitMethods = InitMethods()
    multipliers: Multipliers = Multipliers()
    query_zero_init: bool = False
    value_zero_init: bool = False

    @property
    def scale(self) -> ModelScale:
        """Scale of the whole model, as an argument of the rules."""
        return ModelScale(
            BaseSizes(self.base.hidden_size, self.base.num_layers),
            width_mult=self.widths.multiplier(self.base),
            depth_mult=self.widths.depth_multiplier(self.base),
            options=self.options,
            init=self.init,
            init_scale=self.multipliers.init_scale,
            zero_queries=self.query_zero_init,
            zero_values=self.value_zero_init,
        )

    def plan(self, model: Declared, base: Declared) -> dict[str, ParameterPlan]:
        """Plan every parameter, in the order of the model. `base` is the same model with the base widths."""
        scale = self.scale
        return {
            name: plan_parameter(name, shape, declaration, *base[name], scale, in_block=in_block(name))
            for name, (shape, declaration) in model.items()
        }
