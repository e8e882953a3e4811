"""Initial weights that depend on the seed and the parameter's global name only, never on the layout.

Each rank draws the whole tensor and keeps its part: more random numbers than it needs, and the same bits anywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from megatron.mpu import SINGLE, Communicator, global_shape, shard, shard_of
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
    if plan.value_std != 1.0 and plan.declaration.value_rows is not None:
        period, start, length = plan.declaration.value_rows
        weight.view(-1, period, weight.shape[-1])[:, start : start + length] *= plan.value_std
    if query_zero_init and plan.declaration.zero_blocks is not None:
        period, length = plan.declaration.zero_blocks
        weight.view(-1, period, weight.shape[-1])[:, :length] = 0.0
    return weight


def _padded(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zero rows after the given ones (padding of the vocabulary), so that the shape is `shape`."""
    if weight.shape == shape:
        return weight
    full = weight.new_zeros(shape)
    full[: weight.shape[0]] = weight
    return full


@torch.no_grad()
def initialise(
    parameters: Iterable[tuple[str, nn.Parameter]],
    plans: Mapping[str, ParameterPlan],
    seed: int,
    query_zero_init: bool = False,
    group: Communicator = SINGLE,
) -> None:
    """Fill (global name, parameter) pairs of a materialised model, or of one rank's part of it.

    A sharded parameter gets its slice of the whole tensor over the tensor-parallel `group`. Rows beyond a plan's
    (vocabulary padding) become zero.
    """
    for name, parameter in parameters:
        weight, spec = draw(plans[name], seed, query_zero_init), shard_of(parameter)
        if spec is None:
            parameter.copy_(_padded(weight, tuple(parameter.shape)))
        else:
            whole = _padded(weight, global_shape(parameter.shape, spec, group.size))
            parameter.copy_(shard(whole, spec, group.rank, group.size))
