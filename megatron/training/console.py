"""What a run says at its start and at its end: five opening lines, a summary, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron.initialize import Runtime
from megatron.model.build import ModelPlan
from megatron.neox_arguments.run_config import EvaluationConfig, LoggingConfig, RunConfig, SaveConfig
from mup.rules import Role


@dataclass
class TrainingResult:
    """Result of a run. Losses are in nats per token, or None without such data. flops are the model FLOPs.

    checkpoint: the last checkpoint of the run. seconds: time from the first step to the end.
    """

    step: int
    tokens: int
    flops: float
    train_loss: float | None
    valid_loss: float | None
    test_loss: float | None
    log_dir: Path
    interrupted: bool = False
    checkpoint: Path | None = None
    seconds: float = 0.0

    @property
    def loss(self) -> float | None:
        """The loss by which the run is judged: the held-out loss, or the training loss without one."""
        return self.train_loss if self.valid_loss is None else self.valid_loss


def opening(
    config: RunConfig, plan: ModelPlan, runtime: Runtime, device: str, corpus: Mapping[str, Any], log_dir: Path
) -> list[str]:
    """Five lines: model, muP, data, devices, outputs."""
    return [
        f"model    {_model(config, plan)}",
        f"muP      {_mup(plan)}",
        f"data     {_data(config, corpus)}",
        f"devices  {_devices(config, runtime, device)}",
        f"output   {_outputs(config.logging, config.save if config.train else None, log_dir)}",
    ]


def _model(config: RunConfig, plan: ModelPlan) -> str:
    widths = plan.config.widths
    return (
        f"{config.provenance.name}: {plan.num_parameters:,} parameters ({plan.num_non_embedding_parameters:,} without "
        f"embeddings and readout), {_count(widths.num_layers, 'layer')}, width {widths.hidden_size:,}, "
        f"{_count(widths.num_attention_heads, 'head')}, context {config.model.seq_length:,}, {config.engine.precision}"
    )


def _mup(plan: ModelPlan) -> str:
    """Base and multipliers; those of hidden matrices are the first one's."""
    if not plan.parametrization.options.mup:
        return "off: standard parametrization; hyperparameters change with the width"
    base, factors = plan.parametrization.base, plan.factors
    width = plan.config.widths.multiplier(base)
    hidden = [parameter for parameter in plan.parameters.values() if parameter.role is Role.HIDDEN]
    scales = [f"hidden lr x {hidden[0].scaling.lr:.4g}, init std x {hidden[0].scaling.init_std:.4g}"] if hidden else []
    forward = f"embedding x {factors.embedding:.4g}, q.k x {factors.attention:.4g}, logits x {factors.logits:.4g}"
    return f"base width {base.hidden_size:,}, width multiplier {width:.4g}: " + ", ".join([*scales, forward])


def _data(config: RunConfig, corpus: Mapping[str, Any]) -> str:
    data = config.data
    paths = [data.path] if data.path else [*data.train.paths]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    where = f"{paths[0]}{more}, {corpus['bytes']:,} bytes, SHA-256 {corpus['sha256'][:12]}"
    return f"{where}; {config.tokenizer.tokenizer_type}; {_evaluation(config.evaluation, config.train)}"


def _evaluation(evaluation: EvaluationConfig, train: bool) -> str:
    if not evaluation.valid:
        return "no validation"
    batches = _count(evaluation.iters, "batch", "batches")
    return f"validation on {batches}" + (f" every {_count(evaluation.interval, 'step')}" if train else "")


def _devices(config: RunConfig, runtime: Runtime, device: str) -> str:
    groups, batch = runtime.groups, config.batch
    processes = _count(runtime.world_size, "process", "processes")
    layout = f"tensor {groups.tensor.size} x pipeline {groups.pipe.size} x data {groups.data.size}"
    return (
        f"{processes} on {device}: {layout}, ZeRO {config.engine.zero_stage}; batch of {batch.size} x "
        f"{config.model.seq_length:,} tokens, {config.steps:,} steps"
    )


def _outputs(logging: LoggingConfig, save: SaveConfig | None, log_dir: Path) -> str:
    trackers = [
        "wandb off" if logging.wandb is None else f"wandb project {logging.wandb.project}",
        f"TensorBoard {logging.tensorboard_dir or 'off'}",
    ]
    return ", ".join([f"metrics {log_dir / 'metrics.jsonl'}", f"checkpoints {_checkpoints(save)}", *trackers])


def _checkpoints(save: SaveConfig | None) -> str:
    if save is None:
        return "off"
    if save.factor is None:
        return f"{save.directory} at the end"
    often = f"every {save.factor:g} steps" if save.scale == "linear" else f"at powers of {save.factor:g}"
    return f"{save.directory} {often} and at the end"


def summary(result: TrainingResult, config: RunConfig) -> str:
    """What a run has reached, where it is, and the next command."""
    how = "stopped on request" if result.interrupted else "finished"
    losses = {"train": result.train_loss, "valid": result.valid_loss, "test": result.test_loss}
    shown = "".join(f", {name} loss {loss:.4f}" for name, loss in losses.items() if loss is not None)
    took = f" in {timedelta(seconds=round(result.seconds))}" if config.train else ""
    lines = [
        f"{how} at step {result.step} of {config.steps}{took}: {result.tokens:,} tokens{shown}",
        f"metrics in {result.log_dir}/metrics.jsonl"
        + ("" if result.checkpoint is None else f"; checkpoint in {shown_path(result.checkpoint)}"),
    ]
    return "\n".join([*lines, *_next(result)])


def _next(result: TrainingResult) -> list[str]:
    if result.interrupted and result.checkpoint is None:
        return ["nothing was saved: set `save` to a folder, so that the next run can be continued"]
    if result.checkpoint is None:
        return []
    folder = shlex.quote(shown_path(result.checkpoint.parent))
    if result.interrupted:
        return [f"to continue: the same command with --load {folder}"]
    return [f'next: python generate.py --load {folder} --prompt "The "']


def shown_path(path: Path) -> str:
    """The path relative to the working folder, if it is in there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
