"""A model with its optimizer and schedule on DeepSpeed's engine, and one training step of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron.errors import ConfigError, TrainingError
from megatron.initialize import Runtime
from megatron.model.build import ModelPlan, materialise
from megatron.model.gpt import GPT
from megatron.model.loss import next_token_loss
from megatron.neox_arguments import NeoXArgs
from megatron.parametrization.groups import parameter_groups
from megatron.training.learning_rates import LearningRateSchedule, Scheduler
from megatron.training.optimizer import make_optimizer

Batch = dict[str, Tensor]


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


@dataclass
class Trainee:
    """A model under training."""

    plan: ModelPlan
    engine: Any
    scheduler: Scheduler

    @property
    def model(self) -> GPT:
        return self.engine.module

    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping."""
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)


def build_trainee(
    args: NeoXArgs, runtime: Runtime, plan: ModelPlan, schedule: LearningRateSchedule, seed: int
) -> Trainee:
    """Draw the initial weights, group the parameters by their muP scalings, and hand all to DeepSpeed."""
    import deepspeed

    if args.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
        raise ConfigError(
            f"precision fp16 is not supported on this device ({runtime.device.type}); use bfloat16 or fp32"
        )
    model = materialise(plan, seed, runtime.device)
    params = (args.optimizer or {}).get("params", {})
    groups = parameter_groups(
        model,
        plan.parameters,
        lr=schedule.lr,
        eps=adam_epsilon(args),
        weight_decay=args.weight_decay,
        weight_decay_mode=plan.parametrization.options.weight_decay_mode,
    )
    config = args.deepspeed_config()
    plain = args.precision == "fp32" and args.zero_stage == 0
    if plain:  # DeepSpeed's plain path clips without telling the norm: our optimizer does both
        config["gradient_clipping"] = 0.0
    betas = params.get("betas", (0.9, 0.999))
    optimizer = make_optimizer(
        args.optimizer_type,
        groups,
        betas=(betas[0], betas[1]),
        momentum=params.get("momentum", 0.0),
        nesterov=params.get("nesterov", False),
        implementation=args.optimizer_implementation,
        clip_to=args.gradient_clipping if plain else None,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    scheduler = Scheduler(
        engine.optimizer,
        schedule,
        override_lr_scheduler=args.override_lr_scheduler,
        use_checkpoint_lr_scheduler=args.use_checkpoint_lr_scheduler,
    )
    engine.lr_scheduler = scheduler
    return Trainee(plan, engine, scheduler)


def loss_function(args: NeoXArgs, eod: int | None) -> Callable[[Any, Batch], Tensor]:
    """Loss of a model on a batch {"text": int64 [b, s + 1]}, in nats a token."""
    if args.eod_mask_loss and eod is None:
        raise ConfigError("eod-mask-loss: the tokenizer has no end-of-document token")

    def loss(model: Any, batch: Batch) -> Tensor:
        tokens, labels = batch["text"][:, :-1], batch["text"][:, 1:]
        mask = torch.ne(tokens, eod) if args.eod_mask_loss and eod is not None else None
        return next_token_loss(model(tokens), labels, mask, args.z_loss if model.training else 0.0)

    return loss


def train_step(
    trainee: Trainee,
    batches: Iterator[Batch],
    loss_of: Callable[[Any, Batch], Tensor],
    runtime: Runtime,
    stop: bool,
) -> tuple[float, bool]:
    """One update from gradient_accumulation_steps microbatches: the global batch's mean loss, and whether any
    process was asked to stop.

    Raises TrainingError, on all processes and before the update, where the loss is not finite.
    """
    engine = trainee.engine
    microbatches = engine.gradient_accumulation_steps()
    total = torch.zeros(2, device=runtime.device)
    for microbatch in range(microbatches):
        batch = {key: value.to(runtime.device, non_blocking=True) for key, value in next(batches).items()}
        loss = loss_of(engine, batch)
        engine.backward(loss)
        total[0] += loss.detach() / microbatches
        if microbatch == microbatches - 1:
            total[1] = float(stop)
            mean, stopped = runtime.mean(total).tolist()
            if not torch.isfinite(total[0]):
                raise TrainingError(
                    f"the loss is {mean} at step {engine.global_steps + 1}, so the update was not made. Lower lr, "
                    "lengthen warmup, or clip gradients; with fp16 prefer bfloat16"
                )
        engine.step()
    return mean, stopped > 0
