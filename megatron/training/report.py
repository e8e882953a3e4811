"""What a run says of itself: the header of its metrics, the muP section of its checkpoints, norms by group."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from megatron.initialize import Runtime
from megatron.model.build import ModelPlan, forward_section
from megatron.model.mlp import GATED
from megatron.monitoring.flops import flops_per_token
from megatron.neox_arguments import NeoXArgs
from megatron.training.engine import Trainee


def mup_section(trainee: Trainee) -> dict[str, Any]:
    """All that must not change between a checkpoint and its resume."""
    plan = trainee.plan
    return {
        **forward_section(plan),
        "options": dataclasses.asdict(plan.parametrization.options),
        "lr_mult": {group["name"]: group["lr_mult"] for group in trainee.engine.optimizer.param_groups},
    }


def flops_a_token(plan: ModelPlan) -> float:
    """Model FLOPs of one training token."""
    config, widths = plan.config, plan.config.widths
    return flops_per_token(
        num_layers=widths.num_layers,
        hidden_size=widths.hidden_size,
        num_attention_heads=widths.num_attention_heads,
        num_kv_heads=widths.num_kv_heads,
        head_dim=widths.head_dim,
        ffn_hidden_size=widths.ffn_hidden_size,
        gated=config.activation in GATED,
        vocab_size=config.vocab_size,
        seq_length=config.seq_length,
    )


def run_header(args: NeoXArgs, plan: ModelPlan, runtime: Runtime) -> dict[str, Any]:
    """First line of metrics.jsonl: the configuration, and what a fit over a ladder of runs needs of the model."""
    return {
        "config": args.to_dict(),
        "model": {
            **dataclasses.asdict(plan.config.widths),
            "head_dim": plan.config.widths.head_dim,
            "vocab_size": plan.config.vocab_size,
            "params": plan.num_parameters,
            "params_non_embedding": plan.num_non_embedding_parameters,
            "flops_per_token": flops_a_token(plan),
        },
        "mup": {
            "use_mup": plan.parametrization.options.mup,
            "base": dataclasses.asdict(plan.parametrization.base),
            "width_mult": plan.config.widths.multiplier(plan.parametrization.base),
        },
        "train_batch_size": args.train_batch_size,
        "seq_length": args.seq_length,
        "world_size": runtime.world_size,
        "device": torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "cpu",
    }


def group_norms(trainee: Trainee, args: NeoXArgs) -> dict[str, float]:
    """Norms of parameters by optimizer group, before the step, where log-param-norm asks for them."""
    if not args.log_param_norm:
        return {}
    squares: dict[str, float] = {}
    for name, parameter in trainee.model.named_parameters():
        plan = trainee.plan.parameters[name]
        squares[plan.role.value] = squares.get(plan.role.value, 0.0) + float(parameter.detach().float().square().sum())
    return {f"param_norm/{role}": total**0.5 for role, total in squares.items()}
