"""Notes of the static audit on dimensions that do not grow."""

from __future__ import annotations

from collections.abc import Mapping

from megatron.architecture import Widths
from mup.plan import ParameterPlan, unscaled_fan_ins


def notes(plans: Mapping[str, ParameterPlan], widths: Widths, base: Widths) -> list[str]:
    """Sentences about dimensions that do not grow with the model, so that none counts as finite silently."""
    same = unscaled_fan_ins(plans.values())
    dimensions = [
        f"{name} has the same fan-in in base and target, so its r is 1: check that this is intended" for name in same
    ]
    return [*dimensions, *_fixed_key_value_heads(widths, base)]


def _fixed_key_value_heads(widths: Widths, base: Widths) -> list[str]:
    fixed = widths.num_kv_heads * widths.head_dim == base.num_kv_heads * base.head_dim
    if widths.hidden_size == base.hidden_size or not fixed:
        return []
    return [
        f"keys and values have {widths.num_kv_heads} heads of {widths.head_dim} in base and target while the model "
        f"grows from {base.hidden_size} to {widths.hidden_size}: both then map a width to a finite dimension "
        "and start smaller by the square root of the width multiplier"
    ]
