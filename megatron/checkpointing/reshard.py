"""Load weights and optimizer state of a checkpoint into an engine of another layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron.checkpointing.neox import Assembly, NeoxCheckpoint
from megatron.checkpointing.whole import Layout, WholeCheckpoint
from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences
from megatron.mpu import Communicator, global_shape, shard, shard_of


@dataclass(frozen=True)
class Target:
    """Destination of a load: its layout, the (global name, parameter) pairs of this process, its tensor group.

    assembly: how its parameters are made of GPT-NeoX's shards; None where no such checkpoint is loaded.
    """

    layout: Layout
    parameters: Sequence[tuple[str, nn.Parameter]]
    group: Communicator
    assembly: Assembly | None = None


def local_part(whole: Tensor, parameter: nn.Parameter, group: Communicator) -> Tensor:
    """This rank's part of a whole tensor, with vocabulary padding added as zero rows."""
    spec = shard_of(parameter)
    local = tuple(getattr(parameter, "ds_shape", parameter.shape))
    full = local if spec is None else global_shape(local, spec, group.size)
    if whole.shape != full:
        padded = whole.new_zeros(full)
        padded[: whole.shape[0]] = whole
        whole = padded
    return whole if spec is None else shard(whole, spec, group.rank, group.size)


def load_whole(engine: Any, target: Target, checkpoint: WholeCheckpoint, *, optimizer: bool) -> None:
    """Fill the parameters of this process, and with `optimizer` also its moments. Collective under ZeRO 3.

    With `optimizer` the weights come from the optimizer's fp32 copies, otherwise from the model. Raises
    CheckpointError before anything is changed if the checkpoint belongs to another model.
    """
    wrong = differences(checkpoint.layout.shapes, target.layout.shapes)
    if wrong:
        table = difference_table(wrong, ("name", "saved", "now"))
        raise CheckpointError(f"{checkpoint.path} does not fit this model. The parameters differ in shape:\n{table}")
    step = 0.0
    for i, (name, parameter) in enumerate(target.parameters):
        if not optimizer:
            _set_weight(engine.optimizer, parameter, local_part(checkpoint.weight(name), parameter, target.group))
            continue
        state = checkpoint.state(name)
        if i == 0:
            step = state.step
            _create_states(engine.optimizer, list(state.moments), step)
        _set_weight(engine.optimizer, parameter, local_part(state.weight, parameter, target.group))
        for key, x in state.moments.items():
            _set_moment(engine.optimizer, parameter, key, local_part(x, parameter, target.group))


def load_neox(engine: Any, target: Target, checkpoint: NeoxCheckpoint) -> None:
    """Fill the parameters of this process with the weights of GPT-NeoX. Collective under ZeRO 3.

    Raises CheckpointError before anything is changed if the checkpoint belongs to another model.
    """
    checkpoint.check_fit()
    for name, parameter in target.parameters:
        _set_weight(engine.optimizer, parameter, local_part(checkpoint.weight(name), parameter, target.group))


def _torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _create_states(optimizer: Any, moments: Sequence[str], step: float) -> None:
    """Create the state that torch's optimizer creates at its first step. DeepSpeed's accessors need it."""
    inner = _torch_optimizer(optimizer)
    # ZeRO 3 passes its flat parameters to torch's optimizer one at a time, and keeps them in this attribute
    flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    on_device = any(group.get("fused") or group.get("capturable") for group in inner.param_groups)
    for p in flat if flat is not None else [p for group in inner.param_groups for p in group["params"]]:
        where = p.device if on_device else torch.device("cpu")  # as in torch: a fused step counts on the device
        inner.state[p] = {"step": torch.tensor(step, device=where), **{key: torch.zeros_like(p) for key in moments}}
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


@torch.no_grad()
def _set_weight(optimizer: Any, parameter: nn.Parameter, weight: Tensor) -> None:
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(weight)
    else:
        parameter.copy_(weight)
    if _torch_optimizer(optimizer) is not optimizer:
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, weight.float())


@torch.no_grad()
def _set_moment(optimizer: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    if _torch_optimizer(optimizer) is optimizer:
        optimizer.state[parameter][key].copy_(value)
        return
    from deepspeed.utils import safe_set_full_optimizer_state

    safe_set_full_optimizer_state(parameter, value.float(), key)
