"""Parameter groups for the optimizer: each carries its name, role, `lr_mult` and `width_mult`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from megatron.parametrization.plan import ParameterPlan


def group_name(plan: ParameterPlan) -> str:
    """Name of the group that a parameter belongs to: role, place, and r where it is not 1."""
    place = "block." if plan.in_block else ""
    width = f".r{plan.fan_in_mult:g}" if plan.role.value == "hidden" and plan.fan_in_mult != 1.0 else ""
    return f"{place}{plan.role.value}{width}"


def parameter_groups(
    model: nn.Module,
    plans: Mapping[str, ParameterPlan],
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    weight_decay_mode: str = "scaled",
) -> list[dict[str, Any]]:
    """Groups in the model's order of first appearance; no group is empty.

    lr, eps, weight_decay: base values. In mode `independent` the decay goes to `independent_weight_decay`, which
    our optimizers apply as p -= wd * p, and the coupled `weight_decay` is zero.
    """
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        plan = plans[name]
        label, scaling = group_name(plan), plan.scaling
        key = (label, scaling.lr, scaling.eps, scaling.weight_decay)
        if key not in groups:
            taken = sum(group["name"].split("#")[0] == label for group in groups.values())
            decay = weight_decay * scaling.weight_decay
            independent = weight_decay_mode == "independent"
            groups[key] = {
                "params": [],
                "parameter_names": [],
                "name": f"{label}#{taken}" if taken else label,
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
