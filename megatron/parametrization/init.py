"""Initial weights that depend on the seed and the parameter's global name only, never on the layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megatron.parametrization.plan import ParameterPlan, fans


def parameter_seed(seed: int, name: str) -> int:
    """Seed of one parameter's own generator, from the run's seed and the layout-independent name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw(plan: ParameterPlan, seed: int, query_zero_init: bool = False) -> Tensor:
    """The full initial tensor of one parameter, fp32 on the CPU: float [*plan.shape]."""
    if plan.init_method == "ones":
        return torch.ones(plan.shape)
    if plan.init_method == "zeros" or plan.init_std == 0.0:
        return torch.zeros(plan.shape)
    generator = torch.Generator().manual_seed(parameter_seed(seed, plan.name))
    weight = torch.empty(plan.shape)
    if plan.init_method == "xavier_uniform":
        bound = math.sqrt(3.0) * plan.init_std
        weight.uniform_(-bound, bound, generator=generator)
    elif plan.init_method in ("orthogonal", "scaled_orthogonal"):
        nn.init.orthogonal_(weight, generator=generator)
        weight.mul_(plan.init_std * math.sqrt(max(fans(plan.shape, plan.declaration.fan_in_dim))))
    else:
        weight.normal_(0.0, plan.init_std, generator=generator)
    if query_zero_init and plan.declaration.zero_blocks is not None:
        period, length = plan.declaration.zero_blocks
        weight.view(-1, period, weight.shape[-1])[:, :length] = 0.0
    return weight


@torch.no_grad()
def initialise(
    model: nn.Module,
    plans: Mapping[str, ParameterPlan],
    seed: int,
    query_zero_init: bool = False,
) -> None:
    """Fill every parameter of a materialised model. Rows beyond a plan's (vocabulary padding) become zero."""
    for name, parameter in model.named_parameters():
        weight = draw(plans[name], seed, query_zero_init)
        if weight.shape != parameter.shape:
            parameter.zero_()
            parameter[: weight.shape[0]].copy_(weight)
        else:
            parameter.copy_(weight)
