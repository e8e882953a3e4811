"""Whole parameters of a model that is distributed over processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.mpu import ProcessGroups, shard_of, unshard
from megatron.training.train_module import TrainModule


def local_tensor(parameter: nn.Parameter) -> Tensor:
    """This tensor-parallel rank's part of a parameter, gathered under ZeRO 3. Collective under ZeRO 3."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def gather_shards(local: Tensor, parameter: nn.Parameter, groups: ProcessGroups) -> Tensor:
    """Gather the whole tensor from all tensor-parallel ranks, on each of them. Returns `local` if it is not sharded."""
    spec = shard_of(parameter)
    if spec is None or groups.tensor.size == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(groups.tensor.size)]
    dist.all_gather(parts, local.contiguous(), group=groups.tensor.process_group)
    return unshard(parts, spec)


def whole_parameters(module: TrainModule) -> Iterator[tuple[str, Tensor]]:
    """Iterate over (global name, whole tensor without vocabulary padding) of this stage. Collective."""
    groups = module.runtime.groups
    for name, parameter in module.model.global_named_parameters():
        whole = gather_shards(local_tensor(parameter), parameter, groups)
        yield name, whole[: module.plan.parameters[name].shape[0]]


def weight_digests(module: TrainModule) -> dict[str, str]:
    """SHA-256 of every whole parameter by global name, on every rank. Collective."""
    own = {name: hashlib.sha256(x.float().cpu().numpy().tobytes()).hexdigest() for name, x in whole_parameters(module)}
    stages: list[Any] = [own]
    pipe = module.runtime.groups.pipe
    if pipe.size > 1:
        stages = [None] * pipe.size
        dist.all_gather_object(stages, own, group=pipe.process_group)
    merged: dict[str, str] = {}
    for part in stages:
        for name, digest in part.items():
            if merged.setdefault(name, digest) != digest:
                raise RuntimeError(f"the copies of {name} on two pipeline stages differ")
    return dict(sorted(merged.items()))
