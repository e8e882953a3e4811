"""The static audit (mup.static_audit) of a planned model: rows by plan, and how its forward factors are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megatron.architecture import Widths
from megatron.parametrization.plan import ParameterPlan, unscaled_dimensions
from mup.static_audit import AuditRow

STD_TOLERANCE = 6.0  # standard errors of a measured std, below which a departure is chance
FACTOR_TOLERANCE = 1e-4
FACTOR = "factor"  # role of the rows that are no parameters


def audit_parameters(
    weights: Mapping[str, Tensor],
    plans: Mapping[str, ParameterPlan],
    groups: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    query_zero_init: bool = False,
) -> list[AuditRow]:
    """One row a parameter. `weights` are initial ones; `groups` the optimizer's, at the schedule's peak rate.

    lr, eps, weight_decay: the base values that the user set. A missing or doubled group membership is a departure.
    """
    base = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
    of_parameter: dict[str, list[Mapping[str, Any]]] = {name: [] for name in plans}
    for group in groups:
        for name in group["parameter_names"]:
            of_parameter[name].append(group)
    rows = []
    for name, plan in plans.items():
        row = AuditRow(name, plan.role.value, plan.shape, plan.base_shape, plan.fan_in_mult)
        std, size = _measured_std(plan, weights[name], query_zero_init)
        row.compare("init_std", std, plan.init_std, STD_TOLERANCE / math.sqrt(2.0 * max(size - 1, 1)))
        if len(of_parameter[name]) != 1:
            row.faults["groups"] = f"it is in {len(of_parameter[name])} optimizer groups"
        for group in of_parameter[name][:1]:
            _compare_with_group(row, plan, base, group)
        rows.append(row)
    return rows


def _measured_std(plan: ParameterPlan, weight: Tensor, query_zero_init: bool) -> tuple[float, int]:
    """Root mean square of the entries that were drawn, and how many they are; padding and zeroed queries are not.

    Values that start smaller, by their rule, are measured relative to it.
    """
    weight = weight[: plan.shape[0]].detach().float().clone()
    if plan.declaration.value_rows is not None and plan.value_std not in (0.0, 1.0):
        rows, start, length = plan.declaration.value_rows
        weight.view(-1, rows, weight.shape[-1])[:, start : start + length] /= plan.value_std
    if plan.init_method == "ones":
        return 0.0, weight.numel()
    if plan.declaration.zero_blocks is not None and query_zero_init:
        period, length = plan.declaration.zero_blocks
        weight = weight.view(-1, period, weight.shape[-1])[:, length:]
    return float(weight.square().mean().sqrt()), weight.numel()


def _compare_with_group(
    row: AuditRow, plan: ParameterPlan, base: Mapping[str, float], group: Mapping[str, Any]
) -> None:
    measured = {
        "lr": group["lr"],
        "eps": group.get("eps"),
        "weight_decay": group["weight_decay"] + group.get("independent_weight_decay", 0.0),
    }
    for quantity, value in measured.items():
        if value is not None:  # SGD has no eps
            rule = base[quantity] * getattr(plan.scaling, quantity)
            row.compare(quantity, float(value), rule, FACTOR_TOLERANCE)


def factor_row(name: str, expected: float, measured: float) -> AuditRow:
    """A forward factor of the model: expected by the rules, and measured by running the layer."""
    row = AuditRow(name, FACTOR)
    row.compare("forward", measured, expected, FACTOR_TOLERANCE)
    return row


def notes(plans: Mapping[str, ParameterPlan], widths: Widths, base: Widths) -> list[str]:
    """What does not grow with the model, in sentences: nothing is taken for finite in silence."""
    same = unscaled_dimensions(list(plans.values()))
    told = [f"{name} has the same fan-in in base and target, so its r is 1: is this meant?" for name in same]
    return [*told, *_fixed_key_value_heads(widths, base)]


def _fixed_key_value_heads(widths: Widths, base: Widths) -> list[str]:
    fixed = widths.num_kv_heads * widths.head_dim == base.num_kv_heads * base.head_dim
    if widths.hidden_size == base.hidden_size or not fixed:
        return []
    return [
        f"keys and values have {widths.num_kv_heads} heads of {widths.head_dim} in base and target while the model "
        f"grows from {base.hidden_size} to {widths.hidden_size}: values then are output-like, and start smaller by "
        "the root of the width multiplier"
    ]


@torch.no_grad()
def measured_attention_scale(core: nn.Module, head_dim: int) -> float:
    """The factor on q.k that `core` really applies, from the odds with which position 1 attends to position 0."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 2, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    difference = q[0, 0, 1] @ (k[0, 0, 0] - k[0, 0, 1])
    q = q / difference  # now a factor of 1 gives log-odds of 1
    v = torch.zeros(1, 1, 2, head_dim, dtype=torch.float64)
    v[..., 0, :] = 1.0
    weight = float(core(q, k, v)[0, 0, 1, 0])
    return math.log(weight / (1.0 - weight))


@torch.no_grad()
def measured_gain(layer: Callable[..., Any], x: Tensor, unscaled: Tensor) -> float:
    """The factor by which `layer(x)` exceeds what it would be without its multiplier."""
    return float(layer(x).double().norm() / unscaled.double().norm())
