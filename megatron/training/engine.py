"""A model with its optimizer and schedule on DeepSpeed's engine, and one training step of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from megatron.errors import ConfigError, TrainingError
from megatron.initialize import Runtime, dropout_streams
from megatron.model.build import ModelPlan, materialise
from megatron.mpu import TensorParallel, global_grad_norm, sync_partial_grads_in_backward
from megatron.neox_arguments import NeoXArgs
from megatron.parametrization.groups import parameter_groups
from megatron.training.learning_rates import LearningRateSchedule, Scheduler
from megatron.training.objective import Batch, Objective, make_objective
from megatron.training.optimizer import make_optimizer
from mup.groups import learning_rate_multipliers


def learning_rate_schedule(args: NeoXArgs) -> LearningRateSchedule:
    """The base rate over all steps of the run."""
    args.require("lr", "train_iters")
    decay_iters = args.lr_decay_iters or args.train_iters
    if args.lr_decay_fraction is not None:
        decay_iters = int(args.train_iters * args.lr_decay_fraction)
    return LearningRateSchedule(
        lr=args.lr,
        decay_iters=decay_iters,
        min_lr=args.min_lr,
        warmup_iters=int(args.warmup * decay_iters),
        decay_style=args.lr_decay_style,
        warmup_style=args.warmup_style,
        cooldown_iters=int(args.lr_cooldown_fraction * args.train_iters),
        cooldown_style=args.lr_cooldown_style,
    )


def adam_epsilon(args: NeoXArgs) -> float:
    """Adam's eps as configured, before any scaling."""
    return float((args.optimizer or {}).get("params", {}).get("eps", 1e-8))


def non_finite(loss: float, step: int) -> TrainingError:
    """The error that is raised, on all processes, instead of an update from a loss that is not finite."""
    return TrainingError(
        f"the loss is {loss} at step {step}, so the update was not made. Lower lr, lengthen warmup, or clip "
        "gradients; with fp16 prefer bfloat16"
    )


@dataclass
class Trainee:
    """A model under training."""

    plan: ModelPlan
    engine: Any
    scheduler: Scheduler
    objective: Objective
    runtime: Runtime

    @property
    def model(self) -> Any:
        """This process's GPT, or its PipelinedGPT stage."""
        return self.engine.module

    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping."""
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def _loss(self, batch: Batch) -> Tensor:
        device = self.runtime.device
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        tokens, target = self.objective.split(batch)
        return self.objective.loss(self.engine(tokens), target, self.engine.training)

    def train_step(self, batches: Iterator[Batch], stop: bool = False) -> tuple[float, bool]:
        """One update from gradient_accumulation_steps microbatches: the global batch's mean loss, and whether any
        process was asked to stop.

        Raises TrainingError, on all processes and before the update, where the loss is not finite.
        """
        engine, mean, stopped = self.engine, 0.0, 0.0
        microbatches = engine.gradient_accumulation_steps()
        total = torch.zeros(2, device=self.runtime.device)
        for microbatch in range(microbatches):
            loss = self._loss(next(batches))
            engine.backward(loss)
            total[0] += loss.detach() / microbatches
            if microbatch == microbatches - 1:
                total[1] = float(stop)
                mean, stopped = self.runtime.mean(total).tolist()
                if not torch.isfinite(total[0]):
                    raise non_finite(mean, engine.global_steps + 1)
            engine.step()
        return mean, stopped > 0

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], microbatches: int) -> float:
        """Mean loss in nats a token over `microbatches` microbatches of every process, dropout off."""
        was_training = self.engine.training
        self.engine.eval()
        try:
            losses = [self._loss(batch) for batch in itertools.islice(batches, microbatches)]
            return float(self.runtime.mean(torch.stack(losses).mean()))
        finally:
            self.engine.train(was_training)


def tensor_parallel(args: NeoXArgs, runtime: Runtime, seed: int) -> TensorParallel:
    """What the layers need to know of tensor parallelism."""
    groups = runtime.groups
    return TensorParallel(groups.tensor, args.sequence_parallel, dropout_streams(seed, groups))


def _make_optimizer(args: NeoXArgs, runtime: Runtime, plan: ModelPlan, model: Any, lr: float, plain: bool) -> Any:
    params = (args.optimizer or {}).get("params", {})
    groups = parameter_groups(
        model.global_named_parameters(),
        plan.parameters,
        lr=lr,
        eps=adam_epsilon(args),
        weight_decay=args.weight_decay,
        weight_decay_mode=plan.parametrization.options.weight_decay_mode,
    )
    betas = params.get("betas", (0.9, 0.999))
    shared = {} if runtime.groups.model.size == 1 else {"grad_norm": partial(global_grad_norm, groups=runtime.groups)}
    return make_optimizer(
        args.optimizer_type,
        groups,
        betas=(betas[0], betas[1]),
        momentum=params.get("momentum", 0.0),
        nesterov=params.get("nesterov", False),
        implementation=args.optimizer_implementation,
        clip_to=args.gradient_clipping if plain else None,
        **shared,
    )


def _make_model(
    args: NeoXArgs, runtime: Runtime, plan: ModelPlan, seed: int, tp: TensorParallel, objective: Objective
) -> nn.Module:
    if runtime.groups.pipe.size == 1:
        return materialise(plan, seed, runtime.device, tp)
    from megatron.model.pipeline import materialise_stage

    def loss(logits: Tensor, target: Any) -> Tensor:
        return objective.loss(logits, target, stage.training)

    stage = materialise_stage(plan, seed, runtime.groups, tp, args.pipe_partition_method, loss)
    return stage


def build_trainee(
    args: NeoXArgs,
    runtime: Runtime,
    plan: ModelPlan,
    schedule: LearningRateSchedule,
    seed: int,
    eod: int | None = None,
) -> Trainee:
    """Draw the initial weights, group the parameters by their muP scalings, and hand all to DeepSpeed."""
    import deepspeed

    if args.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
        raise ConfigError(
            f"precision fp16 is not supported on this device ({runtime.device.type}); use bfloat16 or fp32"
        )
    groups, tp = runtime.groups, tensor_parallel(args, runtime, seed)
    objective = make_objective(args, plan.config.vocab_size, eod, groups.tensor)
    model = _make_model(args, runtime, plan, seed, tp, objective)
    sync_partial_grads_in_backward(model, groups.tensor)
    config = args.deepspeed_config()
    plain = args.precision == "fp32" and args.zero_stage == 0
    if plain:  # DeepSpeed's plain path clips without telling the norm: our optimizer does both
        config["gradient_clipping"] = 0.0
    optimizer = _make_optimizer(args, runtime, plan, model, schedule.lr, plain)
    pipelined = groups.pipe.size > 1
    # a pipeline brings its own; DeepSpeed keeps the last one it saw, so that every other layout must tell its own
    mpu = groups if runtime.world_size > 1 and not pipelined else None
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, mpu=mpu, dist_init_required=False
    )
    scheduler = Scheduler(
        engine.optimizer,
        schedule,
        lr_mults=learning_rate_multipliers(plan.parameters.values()),
        override_lr_scheduler=args.override_lr_scheduler,
        use_checkpoint_lr_scheduler=args.use_checkpoint_lr_scheduler,
    )
    engine.lr_scheduler = scheduler
    if pipelined:
        from megatron.training.pipelined import PipelinedTrainee

        return PipelinedTrainee(plan, engine, scheduler, objective, runtime)
    return Trainee(plan, engine, scheduler, objective, runtime)
