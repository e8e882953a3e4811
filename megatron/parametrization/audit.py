"""The static audit: what every parameter should be by its rule, beside what model and optimizer really hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron.parametrization.plan import ParameterPlan

STD_TOLERANCE = 6.0  # standard errors of a measured std, below which a departure is chance
FACTOR_TOLERANCE = 1e-4


@dataclass(frozen=True)
class AuditRow:
    """One parameter. `expected` and `measured`: init std, lr, eps, weight decay by these names."""

    name: str
    role: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    fan_in_mult: float
    expected: Mapping[str, float]
    measured: Mapping[str, float]
    departures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.departures


def _std_departs(plan: ParameterPlan, weight: Tensor, measured: float, expected: float) -> bool:
    if expected == 0.0:
        return measured != 0.0
    standard_error = expected / math.sqrt(2.0 * max(weight.numel() - 1, 1))
    return abs(measured - expected) > STD_TOLERANCE * standard_error


def _expected(plan: ParameterPlan, lr: float, eps: float, weight_decay: float) -> dict[str, float]:
    return {
        "init_std": plan.init_std,
        "lr": lr * plan.scaling.lr,
        "eps": eps * plan.scaling.eps,
        "weight_decay": weight_decay * plan.scaling.weight_decay,
    }


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
    of_parameter: dict[str, list[Mapping[str, Any]]] = {name: [] for name in plans}
    for group in groups:
        for name in group["parameter_names"]:
            of_parameter[name].append(group)
    rows = []
    for name, plan in plans.items():
        weight = weights[name][: plan.shape[0]].detach().float()
        if plan.declaration.zero_blocks is not None and query_zero_init:
            period, length = plan.declaration.zero_blocks
            weight = weight.view(-1, period, weight.shape[-1])[:, length:]
        expected = _expected(plan, lr, eps, weight_decay)
        measured = {"init_std": float(weight.square().mean().sqrt()) if plan.init_method != "ones" else 0.0}
        departures = []
        if _std_departs(plan, weight, measured["init_std"], expected["init_std"]):
            departures.append("init_std")
        if len(of_parameter[name]) != 1:
            departures.append(f"in {len(of_parameter[name])} optimizer groups")
        for group in of_parameter[name][:1]:
            decay = group["weight_decay"] + group.get("independent_weight_decay", 0.0)
            measured |= {"lr": group["lr"], "eps": group.get("eps", expected["eps"]), "weight_decay": decay}
            departures += [
                key
                for key in ("lr", "eps", "weight_decay")
                if not math.isclose(measured[key], expected[key], rel_tol=FACTOR_TOLERANCE)
            ]
        rows.append(
            AuditRow(
                name,
                plan.role.value,
                plan.shape,
                plan.base_shape,
                plan.fan_in_mult,
                expected,
                measured,
                tuple(departures),
            )
        )
    return rows


@dataclass(frozen=True)
class FactorRow:
    """One forward factor of the model: expected by the rules, and measured by running the layer."""

    name: str
    expected: float
    measured: float

    @property
    def passed(self) -> bool:
        return math.isclose(self.expected, self.measured, rel_tol=FACTOR_TOLERANCE, abs_tol=1e-12)


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
