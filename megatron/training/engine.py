"""Build a model that trains from its plan: initial weights, optimizer, schedule, DeepSpeed's engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from megatron.errors import ConfigError
from megatron.initialize import Runtime, dropout_streams
from megatron.model.build import ModelPlan, materialise
from megatron.model.compilation import compile_layers
from megatron.model.gpt import GPT
from megatron.model.moe import expert_layers
from megatron.mpu import TensorParallel, global_grad_norm, sync_partial_grads_in_backward
from megatron.neox_arguments.run_config import BatchConfig, EngineConfig, LayoutConfig, OptimizerConfig, ScheduleConfig
from megatron.parametrization.groups import parameter_groups
from megatron.training.learning_rates import LearningRateSchedule, Scheduler
from megatron.training.objective import Objective, Target
from megatron.training.optimizer import check_overflow_by_norm, hold, make_optimizer
from megatron.training.train_module import TrainModule
from mup.groups import learning_rate_multipliers


def learning_rate_schedule(config: ScheduleConfig) -> LearningRateSchedule:
    """Schedule of the base learning rate over the steps of the run."""
    return LearningRateSchedule(
        lr=config.lr,
        decay_iters=config.decay_iters,
        min_lr=config.min_lr,
        warmup_iters=config.warmup_iters,
        decay_style=config.decay_style,
        warmup_style=config.warmup_style,
        cooldown_iters=config.cooldown_iters,
        cooldown_style=config.cooldown_style,
    )


def _tensor_parallel(config: LayoutConfig, runtime: Runtime, seed: int) -> TensorParallel:
    """Tensor-parallel settings of the layers."""
    groups = runtime.groups
    return TensorParallel(groups.tensor, config.sequence_parallel, dropout_streams(seed, groups))


def _make_optimizer(
    config: OptimizerConfig, runtime: Runtime, plan: ModelPlan, model: Any, lr: float, clips: bool
) -> torch.optim.Optimizer:
    """Create the optimizer. clips: whether it clips gradients and records their norm, because DeepSpeed does not."""
    groups = parameter_groups(
        model.global_named_parameters(),
        plan.parameters,
        lr=lr,
        eps=config.eps,
        weight_decay=config.weight_decay,
        weight_decay_mode=plan.parametrization.options.weight_decay_mode,
    )
    shared = {} if runtime.groups.model.size == 1 else {"grad_norm": partial(global_grad_norm, groups=runtime.groups)}
    return make_optimizer(
        config.kind,
        groups,
        betas=config.betas,
        momentum=config.momentum,
        nesterov=config.nesterov,
        implementation=config.implementation,
        clip_to=config.clip_grad if clips else None,
        **shared,
    )


def _make_model(
    config: LayoutConfig, runtime: Runtime, plan: ModelPlan, seed: int, objective: Objective
) -> GPT | nn.Module:
    tp = _tensor_parallel(config, runtime, seed)
    if runtime.groups.pipe.size == 1:
        return materialise(plan, seed, runtime.device, tp)
    from megatron.model.pipeline import materialise_stage

    def loss(logits: Tensor, target: Target) -> Tensor:
        return objective.loss(logits, target, stage.training)

    stage = materialise_stage(plan, seed, runtime.groups, tp, config.partition_method, loss)
    return stage


def _deepspeed_config(config: EngineConfig, batch: BatchConfig, optimizer_clips: bool) -> dict[str, Any]:
    sizes = {
        "train_batch_size": batch.size,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
    }
    clipping = {"gradient_clipping": 0.0} if optimizer_clips else {}
    return {**config.deepspeed, **sizes, **clipping}


def gradient_scale(engine: Any) -> float:
    """Factor of the engine on the gradients of the loss of a microbatch: loss scale / number of microbatches."""
    scale = engine._get_optimizer_loss_scale() or 1.0
    if engine.torch_autocast_z0_gradscaler:
        scale *= engine.torch_autocast_z0_gradscaler.get_scale()
    return float(scale) / int(engine.gradient_accumulation_steps())


def build_train_module(
    config: EngineConfig,
    runtime: Runtime,
    plan: ModelPlan,
    schedule: ScheduleConfig,
    batch: BatchConfig,
    seed: int,
    masked_token: int | None = None,
) -> TrainModule:
    """Draw the initial weights, group the parameters by their muP scalings, and build DeepSpeed's engine.

    masked_token: positions with this token do not count in the loss.
    Raises ConfigError if fp16 is not supported on the device or at the ZeRO stage.
    """
    import deepspeed

    if config.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
        raise ConfigError(
            f"precision fp16 is not supported on this device ({runtime.device.type}); use bfloat16 or fp32"
        )
    if config.precision == "fp16" and config.zero_stage == 0:
        raise ConfigError(
            "precision fp16 needs ZeRO stage 1 or more: at stage 0 DeepSpeed divides the gradients by a loss scale, "
            "but does not multiply the loss by it. Set zero_optimization.stage to 1, or use bfloat16"
        )
    groups = runtime.groups
    objective = Objective(plan.config.vocab_size, config.loss.z_loss, masked_token, groups.tensor)
    if config.compile:
        objective = objective.compiled()
    model = _make_model(config.layout, runtime, plan, seed, objective)
    if config.compile:
        compile_layers(model, plan.config.seq_length, runtime.device)
    sync_partial_grads_in_backward(model, groups.tensor)
    # without ZeRO in fp32, DeepSpeed clips but does not record the norm; our optimizer does both
    optimizer_clips = config.precision == "fp32" and config.zero_stage == 0
    optimizer = _make_optimizer(config.optimizer, runtime, plan, model, schedule.lr, optimizer_clips)
    pipelined = groups.pipe.size > 1
    # a pipeline has its own mpu; DeepSpeed keeps the last mpu globally, so every other layout must pass one
    mpu = groups if runtime.world_size > 1 and not pipelined else None
    with hold(optimizer):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_deepspeed_config(config, batch, optimizer_clips),
            mpu=mpu,
            dist_init_required=False,
        )
    check_overflow_by_norm(engine.optimizer)
    for layer in expert_layers(model):
        layer.gradient_scale = partial(gradient_scale, engine)
    scheduler = Scheduler(
        engine.optimizer,
        learning_rate_schedule(schedule),
        lr_mults=learning_rate_multipliers(plan.parameters.values()),
        override_lr_scheduler=schedule.override,
        use_checkpoint_lr_scheduler=schedule.use_checkpoint,
    )
    engine.lr_scheduler = scheduler
    if pipelined:
        from megatron.training.pipeline_train_module import PipelineTrainModule

        return PipelineTrainModule(plan, engine, scheduler, objective, runtime)
    return TrainModule(plan, engine, scheduler, objective, runtime)
