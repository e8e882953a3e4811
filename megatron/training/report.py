"""Records of a run: the header of its metrics, the muP section and layout of its checkpoints, norms by role."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from megatron.checkpointing import Layout
from megatron.initialize import Runtime
from megatron.model.build import ModelPlan, forward_section, meta_model
from megatron.model.gpt import layer_list
from megatron.model.moe import expert_layers
from megatron.monitoring.flops import flops_per_token
from megatron.mpu import Communicator, TensorParallel, counts_here, named_shards
from megatron.neox_arguments.run_config import EngineConfig, RunConfig
from megatron.training.full_state import local_tensor
from megatron.training.train_module import TrainModule
from mup.groups import learning_rate_multipliers


def mup_section(module: TrainModule) -> dict[str, Any]:
    """The parametrization, which must not change between a checkpoint and its resume."""
    plan = module.plan
    return {
        **forward_section(plan),
        "options": dataclasses.asdict(plan.parametrization.options),
        "lr_mult": learning_rate_multipliers(plan.parameters.values()),
    }


def checkpoint_layout(config: EngineConfig, module: TrainModule) -> Layout:
    """Layout of the checkpoints of this run, recorded for a later run under another layout."""
    plan, groups = module.plan, module.runtime.groups
    layers = tuple(name for name, _ in layer_list(plan.config, plan.factors))
    described = TensorParallel(Communicator(0, groups.tensor.size, groups.tensor.ranks))
    shards = named_shards(meta_model(plan.config, plan.factors, described))
    return Layout(
        groups.tensor.size,
        groups.pipe.size,
        groups.data.size,
        config.zero_stage,
        config.precision,
        layers,
        module.layer_bounds,
        {name: tuple(parameter.shape) for name, parameter in plan.parameters.items()},
        {name: (spec.dim, spec.blocks) for name, spec in shards.items()},
        plan.config.padded_vocab_size,
    )


def flops_a_token(plan: ModelPlan) -> float:
    """Model FLOPs per training token."""
    config, widths = plan.config, plan.config.widths
    return flops_per_token(
        num_layers=widths.num_layers,
        hidden_size=widths.hidden_size,
        num_attention_heads=widths.num_attention_heads,
        num_kv_heads=widths.num_kv_heads,
        head_dim=widths.head_dim,
        ffn_hidden_size=widths.ffn_hidden_size,
        gated=config.gated,
        vocab_size=config.vocab_size,
        seq_length=config.seq_length,
        experts=config.experts,
        sliding_window=config.sliding_window,
    )


def run_header(config: RunConfig, plan: ModelPlan, runtime: Runtime, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """First line of metrics.jsonl: the configuration, and the facts that a fit over a ladder of runs needs."""
    return {
        "corpus": corpus,
        "config": dict(config.provenance.keys),
        "model": {
            **dataclasses.asdict(plan.config.widths),
            "head_dim": plan.config.widths.head_dim,
            "vocab_size": plan.config.vocab_size,
            "params": plan.num_parameters,
            **({} if plan.config.experts is None else {"params_active": plan.num_active_parameters}),
            "params_non_embedding": plan.num_non_embedding_parameters,
            "flops_per_token": flops_a_token(plan),
        },
        "mup": {
            "use_mup": plan.parametrization.options.mup,
            "base": dataclasses.asdict(plan.parametrization.base),
            "width_mult": plan.config.widths.multiplier(plan.parametrization.base),
        },
        "train_batch_size": config.batch.size,
        "seq_length": config.model.seq_length,
        "world_size": runtime.world_size,
        "device": torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "cpu",
    }


def router_losses(module: TrainModule) -> dict[str, float]:
    """Balancing loss and z-loss of the routers since the last call, without coefficients, averaged over the layers.

    Empty for a model without experts. Collective.
    """
    config, groups = module.plan.config, module.runtime.groups
    if config.experts is None:
        return {}
    total = torch.zeros(2, device=module.runtime.device)
    for layer in expert_layers(module.model):
        total += layer.take_losses()
    layers = config.experts.blocks(config.widths.num_layers)
    balance, z = (module.runtime.mean(total) * groups.pipe.size / layers).tolist()  # every layer is on one stage
    return {"train/balance_loss": balance, "train/router_z_loss": z}


def group_norms(module: TrainModule) -> dict[str, float]:
    """Norms of the parameters by role. Collective."""
    groups = module.runtime.groups
    roles = sorted({plan.role.value for plan in module.plan.parameters.values()})
    squares = torch.zeros(len(roles), dtype=torch.float64, device=module.runtime.device)
    for name, parameter in module.model.global_named_parameters():
        if counts_here(parameter, groups.tensor.rank):
            index = roles.index(module.plan.parameters[name].role.value)
            squares[index] += local_tensor(parameter).double().square().sum()
    norms = groups.model.all_reduce(squares).sqrt().tolist()
    return {f"param_norm/{role}": norm for role, norm in zip(roles, norms, strict=True)}
