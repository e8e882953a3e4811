"""Parameter groups for the optimizer: each carries its name, role, `lr_mult` and `width_mult`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from megatron.parametrization.plan import ParameterPlan


def group_name(plan: ParameterPlan) -> str:
    """Name of the group that a parameter belongs to: role, place, and r where it is not 1."""
    place = "block." if plan.in_block else ""
    width = f".r{plan.fan_in_mult:g}" if plan.role.value == "hidden" and plan.fan_in_mult != 1.0 else ""
    return f"{place}{plan.role.value}{width}"


_Key = tuple[object, ...]


def _key(plan: ParameterPlan) -> _Key:
    return (group_name(plan), plan.scaling.lr, plan.scaling.eps, plan.scaling.weight_decay)


def _names(plans: Mapping[str, ParameterPlan]) -> dict[_Key, str]:
    """A name for every group of the whole model: `name#1`, ... where the same label has several scalings."""
    names: dict[_Key, str] = {}
    for plan in plans.values():
        key, label = _key(plan), group_name(plan)
        if key not in names:
            taken = sum(name.split("#")[0] == label for name in names.values())
            names[key] = f"{label}#{taken}" if taken else label
    return names


def learning_rate_multipliers(plans: Mapping[str, ParameterPlan]) -> dict[str, float]:
    """Group name -> lr_mult for the whole model, of which a pipeline stage may hold only some groups."""
    names = _names(plans)
    return {names[_key(plan)]: plan.scaling.lr for plan in plans.values()}


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    plans: Mapping[str, ParameterPlan],
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    weight_decay_mode: str = "scaled",
) -> list[dict[str, Any]]:
    """Groups of (global name, parameter) pairs, in order of first appearance; no group is empty.

    `plans` are those of the whole model: names of groups do not depend on the layout.
    lr, eps, weight_decay: base values. In mode `independent` the decay goes to `independent_weight_decay`, which
    our optimizers apply as p -= wd * p, and the coupled `weight_decay` is zero.
    """
    names = _names(plans)
    independent = weight_decay_mode == "independent"
    groups: dict[_Key, dict[str, Any]] = {}
    for name, parameter in parameters:
        plan = plans[name]
        key, scaling = _key(plan), plan.scaling
        if key not in groups:
            decay = weight_decay * scaling.weight_decay
            groups[key] = {
                "params": [],
                "parameter_names": [],
                "name": names[key],
                "role": plan.role.value,
                "lr": lr * scaling.lr,
                "lr_mult": scaling.lr,
                "width_mult": plan.fan_in_mult,
                "eps": eps * scaling.eps,
                "weight_decay": 0.0 if independent else decay,
                "independent_weight_decay": decay if independent else 0.0,
            }
        groups[key]["params"].append(parameter)
        groups[key]["parameter_names"].append(name)
    return list(groups.values())
