"""Initial weights that depend only on the seed and the global name of the parameter, not on the layout.

Each rank draws the whole tensor and keeps its part. This draws more random numbers than a rank needs, but the bits are
equal under every layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from megatron.mpu import SINGLE, Communicator, global_shape, shard, shard_of
from mup.plan import ParameterPlan


def parameter_seed(seed: int, name: str) -> int:
    """Seed of the generator of one parameter, from the seed of the run and the layout-independent name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw(plan: ParameterPlan, seed: int) -> Tensor:
    """Draw the whole initial tensor of one parameter, fp32 on the CPU: [*plan.shape]."""
    return plan.draw(torch.Generator().manual_seed(parameter_seed(seed, plan.name)))


def _padded(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Append zero rows (vocabulary padding) up to the shape `shape`."""
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
    group: Communicator = SINGLE,
) -> None:
    """Fill (global name, parameter) pairs of a materialised model, or of one rank's part of it.

    A sharded parameter gets its part of the whole tensor in the tensor-parallel `group`. Rows beyond those of the
    plan (vocabulary padding) are zero.
    """
    for name, parameter in parameters:
        weight, spec = draw(plans[name], seed), shard_of(parameter)
        if spec is None:
            parameter.copy_(_padded(weight, tuple(parameter.shape)))
        else:
            whole = _padded(weight, global_shape(parameter.shape, spec, group.size))
            parameter.copy_(shard(whole, spec, group.rank, group.size))
