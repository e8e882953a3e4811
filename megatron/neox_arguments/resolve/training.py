"""Resolve training: optimizer, schedule, batch sizes, parallel layout, engine and launch."""

from __future__ import annotations

from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.ranks import rank_environment
from megatron.neox_arguments.resolve.duration import training_steps
from megatron.neox_arguments.resolve.known import known
from megatron.neox_arguments.resolve.model import optimizer_kind
from megatron.neox_arguments.run_config import (
    BatchConfig,
    EngineConfig,
    FaultConfig,
    LaunchConfig,
    LayoutConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def optimizer_config(args: NeoXArgs) -> OptimizerConfig:
    params = (args.optimizer or {}).get("params") or {}
    first, second = params.get("betas", (0.9, 0.999))
    return OptimizerConfig(
        kind=optimizer_kind(args),
        implementation=args.optimizer_implementation,
        betas=(first, second),
        eps=float(params.get("eps", 1e-8)),
        weight_decay=args.weight_decay,
        momentum=params.get("momentum", 0.0),
        nesterov=params.get("nesterov", False),
        clip_grad=args.gradient_clipping,
    )


def schedule_config(args: NeoXArgs) -> ScheduleConfig:
    """Resolve the base learning rate over all steps of the run."""
    args.require("lr")
    steps = training_steps(args)
    decay_iters = args.lr_decay_iters or steps
    if args.lr_decay_fraction is not None:
        decay_iters = int(steps * args.lr_decay_fraction)
    return ScheduleConfig(
        lr=known(args.lr),
        decay_iters=decay_iters,
        min_lr=args.min_lr,
        warmup_iters=int(args.warmup * decay_iters),
        decay_style=args.lr_decay_style,
        warmup_style=args.warmup_style,
        cooldown_iters=int(args.lr_cooldown_fraction * steps),
        cooldown_style=args.lr_cooldown_style,
        override=args.override_lr_scheduler,
        use_checkpoint=args.use_checkpoint_lr_scheduler,
    )


def batch_config(args: NeoXArgs) -> BatchConfig:
    args.require("train_batch_size", "train_micro_batch_size_per_gpu")
    return BatchConfig(
        size=known(args.train_batch_size),
        micro=known(args.train_micro_batch_size_per_gpu),
        accumulation=known(args.gradient_accumulation_steps),
    )


def layout_config(args: NeoXArgs) -> LayoutConfig:
    return LayoutConfig(
        tensor=args.model_parallel_size,
        pipe=args.pipe_parallel_size,
        partition_method=args.pipe_partition_method,
        sequence_parallel=args.sequence_parallel,
    )


def engine_config(args: NeoXArgs) -> EngineConfig:
    assert isinstance(args.zero_stage, int)
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return EngineConfig(
        precision=known(args.precision),
        zero_stage=args.zero_stage,
        compile=args.torch_compile,
        optimizer=optimizer_config(args),
        loss=LossConfig(z_loss=args.z_loss, mask_eod=args.eod_mask_loss),
        layout=layout_config(args),
        deepspeed={key: value for key, value in args.deepspeed_config.items() if key not in sizes},
    )


def launch_config(args: NeoXArgs, any_number: bool = False) -> LaunchConfig:
    """any_number: the job runs on any number of processes, not on the number of the configuration."""
    return LaunchConfig(
        backend=args.distributed_backend,
        timeout_minutes=args.distributed_timeout_minutes,
        deterministic=args.deterministic,
        environment=rank_environment(args, any_number=any_number),
    )


def fault_config(args: NeoXArgs) -> FaultConfig:
    return FaultConfig(
        nonfinite=args.nonfinite_policy,
        limit=args.nonfinite_limit,
        spike=args.loss_spike_policy,
        spike_threshold=args.loss_spike_threshold,
        spike_window=args.loss_spike_window,
    )
