"""Optimizer groups from the plans of a whole model, for a process that holds a part of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mup.groups import group_parameters
from mup.plan import ParameterPlan


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    plans: Mapping[str, ParameterPlan],
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    weight_decay_mode: str = "scaled",
) -> list[dict[str, Any]]:
    """Group (global name, parameter) pairs. `plans` are those of the whole model.

    lr, eps, weight_decay: base values; lr is the peak of the schedule. With weight_decay_mode `independent` the coupled
    `weight_decay` is zero, and the decay is in `independent_weight_decay`, which our optimizers apply as
    p -= wd * (lr / peak_lr) * p. It follows the schedule, but does not depend on its peak.
    """
    planned = ((parameter, plans[name]) for name, parameter in parameters)
    groups = group_parameters(planned, plans.values(), lr=lr, weight_decay=weight_decay, eps=eps)
    for group in groups:
        decay = group["weight_decay"]
        coupled, independent = (0.0, decay) if weight_decay_mode == "independent" else (decay, 0.0)
        group |= {"weight_decay": coupled, "independent_weight_decay": independent, "peak_lr": group["lr"]}
    return groups
