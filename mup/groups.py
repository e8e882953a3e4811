"""Optimizer groups of planned parameters: one group per role, place (block or not) and set of factors.

Every group has `name`, `role`, `lr_mult` and `width_mult`. Names are derived from the plans of the whole model, so a
process that holds a part of the model gives its groups the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mup.plan import ScaledParameter
from mup.rules import INNER

__all__ = ["Group", "group_parameters", "learning_rate_multipliers", "scaled"]

Group = dict[str, Any]
_Key = tuple[str, float, float, float]


def _label(plan: ScaledParameter) -> str:
    """Role, place, and r of an inner matrix if it is not 1."""
    place = "block." if plan.in_block else ""
    width = f".r{plan.fan_in_mult:g}" if plan.role in INNER and plan.fan_in_mult != 1.0 else ""
    return f"{place}{plan.role.value}{width}"


def _key(plan: ScaledParameter) -> _Key:
    return _label(plan), plan.scaling.lr, plan.scaling.eps, plan.scaling.weight_decay


def _names(plans: Iterable[ScaledParameter]) -> dict[_Key, str]:
    """Names of the groups of the whole model: `label`, then `label#1`, ... if a label has several scalings."""
    names: dict[_Key, str] = {}
    for plan in plans:
        key = _key(plan)
        if key not in names:
            taken = sum(other[0] == key[0] for other in names)
            names[key] = f"{key[0]}#{taken}" if taken else key[0]
    return names


def learning_rate_multipliers(plans: Iterable[ScaledParameter]) -> dict[str, float]:
    """Map group name -> lr_mult for the whole model."""
    return {name: key[1] for key, name in _names(plans).items()}


def scaled(lr: Any, factor: float) -> Any:
    """Return lr times the factor. A tensor is copied, because optimizers change it in place."""
    return lr.detach().clone().mul_(factor) if isinstance(lr, Tensor) else lr * factor


def group_parameters(
    parameters: Iterable[tuple[nn.Parameter, ScaledParameter]],
    whole: Iterable[ScaledParameter],
    *,
    lr: Any,
    weight_decay: float,
    eps: float | None,
) -> list[Group]:
    """Group parameters, in order of first appearance. There are no empty groups.

    whole: plans of the whole model; `parameters` can be a part of it.
    lr, weight_decay, eps: base values. With eps None the groups have no eps. The `weight_decay` of a group is the base
    value times its factor in every mode.
    """
    names = _names(whole)
    groups: dict[_Key, Group] = {}
    for parameter, plan in parameters:
        key, scaling = _key(plan), plan.scaling
        if key not in groups:
            groups[key] = {
                "params": [],
                "parameter_names": [],
                "name": names[key],
                "role": plan.role.value,
                "lr": scaled(lr, scaling.lr),
                "lr_mult": scaling.lr,
                "width_mult": plan.width_mult,
                "weight_decay": weight_decay * scaling.weight_decay,
            } | ({} if eps is None else {"eps": eps * scaling.eps})
        groups[key]["params"].append(parameter)
        groups[key]["parameter_names"].append(plan.name)
    return list(groups.values())
