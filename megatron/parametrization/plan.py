"""The parametrization of one GPT: its widths and its base's, and from them the plan of every parameter by name."""

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
    """One model's parametrization. In SP (`options.mup` false) base is the model itself.

    query_zero_init: queries start at zero. value_zero_init: so do values whose heads grow more slowly than the model
    (for the coordinate check, as a readout).
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
        """What the rules need to know of the model as a whole."""
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
        """Plans by name, in the model's order. `base` is the same model built with the base widths."""
        scale = self.scale
        return {
            name: plan_parameter(name, shape, declaration, *base[name], scale, in_block=in_block(name))
            for name, (shape, declaration) in model.items()
        }
