"""The training loop: steps, logging, evaluation, checkpoints, and a clean stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import (
    Layout,
    Target,
    check_own_folder,
    folder_lock,
    load_checkpoint,
    save_checkpoint,
    save_iterations,
)
from megatron.checkpointing.collective import from_rank_0
from megatron.initialize import Runtime
from megatron.monitoring import Monitor, MonitorGroup, ThroughputTimer, build_monitors, default_log_dir, peak_memory
from megatron.monitoring.flops import peak_tflops
from megatron.neox_arguments.run_config import (
    BatchConfig,
    EvaluationConfig,
    LoadConfig,
    RunConfig,
    SaveConfig,
    WandbConfig,
)
from megatron.tokenizer import build_tokenizer
from megatron.training.data import RunData, fingerprint
from megatron.training.engine import build_train_module
from megatron.training.model_from_config import model_plan, neox_assembly
from megatron.training.objective import masked_token
from megatron.training.report import (
    checkpoint_layout,
    flops_a_token,
    group_norms,
    mup_section,
    router_losses,
    run_header,
)
from megatron.training.resume import (
    Progress,
    data_section,
    describe_new_data,
    describe_resume,
    free_section,
    nothing_to_load,
)
from megatron.training.stop import StopRequest
from megatron.training.train_module import TrainModule


@dataclass
class TrainingResult:
    """Result of a run. Losses are in nats per token, or None without such data. flops are the model FLOPs."""

    step: int
    tokens: int
    flops: float
    train_loss: float | None
    valid_loss: float | None
    test_loss: float | None
    log_dir: Path
    interrupted: bool = False

    @property
    def loss(self) -> float | None:
        """The loss by which the run is judged: the held-out loss, or the training loss without one."""
        return self.train_loss if self.valid_loss is None else self.valid_loss


@dataclass
class _Window:
    """Losses since the last logged record."""

    losses: list[float] = field(default_factory=list)

    def close(self) -> float:
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return mean


class Trainer:
    """One training run. The constructor builds everything that a step needs."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        tokenizer = build_tokenizer(*config.tokenizer)
        plan = model_plan(config.model, tokenizer.vocab_size)
        self.corpus = fingerprint(config.data)
        self.data_section = data_section(config, self.corpus)
        self.train_module: TrainModule = build_train_module(
            config.engine,
            runtime,
            plan,
            config.schedule,
            config.batch,
            config.seed,
            masked_token(config.engine.loss, tokenizer),
        )
        self.log_dir = config.logging.log_dir or default_log_dir(config.provenance.name, datetime.now())
        self.run_id = from_rank_0(lambda: secrets.token_hex(4))
        self.notices: list[str] = []
        self.save_steps = set() if config.save is None else _save_steps(config.save, config.steps)
        self.progress = Progress()
        continued = None if config.load is None else self._load(config.load)
        if config.save is not None and config.train:
            check_own_folder(config.save.directory, continued)
        samples = _sample_counts(self.progress, config.steps, config.batch, config.evaluation)
        self.data = RunData(config.data, runtime, tokenizer.vocab_size, config.batch, samples)

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.progress.step

    @property
    def tokens(self) -> int:
        """Number of tokens trained on so far."""
        return self.progress.tokens

    @cached_property
    def layout(self) -> Layout:
        """Layout of the checkpoints. It is computed only by runs that load or save one."""
        return checkpoint_layout(self.config.engine, self.train_module)

    def _load(self, config: LoadConfig) -> Path | None:
        """Resume from the checkpoint, if there is one. Returns the checkpoint that this run continues."""
        module = self.train_module
        loaded = load_checkpoint(
            module.engine,
            config.directory,
            iteration=config.iteration,
            mup=mup_section(module),
            data=None if config.override_data else self.data_section,
            load_optimizer=config.optimizer,
            load_rng=config.rng,
            finetune=config.finetune,
            target=Target(
                self.layout,
                list(module.model.global_named_parameters()),
                self.runtime.groups.tensor,
                neox_assembly(module.plan),
            ),
        )
        module.scheduler.apply()  # DeepSpeed restores ZeRO's groups after the schedule
        if loaded is None:
            self.notices.append(nothing_to_load(config, self.config.train))
            return None
        if config.finetune:
            self.notices.append(f"took the weights of {loaded.path}: a new run starts at step 0")
            return None
        self.progress = Progress.of(loaded)
        self.notices.append(describe_resume(loaded, self.progress, self.config))
        if config.override_data and (changes := describe_new_data(loaded, self.data_section)):
            self.progress = dataclasses.replace(self.progress, consumed_samples=0)
            self.notices.append(changes)
        save = self.config.save
        if save is not None and loaded.path.parent == save.directory.absolute():  # else this run is a branch
            self.run_id = loaded.client_state.get("run", {}).get("id", self.run_id)
        return loaded.path

    def save(self, config: SaveConfig) -> str:
        """Save a checkpoint of the current step. Returns a line that says so."""
        provenance = self.config.provenance
        path = save_checkpoint(
            self.train_module.engine,
            config.directory,
            self.step,
            client_state={
                "consumed_samples": self.progress.consumed_samples,
                "tokens": self.tokens,
                "data": self.data_section,
                "run": {"id": self.run_id, "free": free_section(self.config)},
                "mup": mup_section(self.train_module),
                "layout": self.layout.section(),
            },
            config_files={**provenance.files, "resolved.json": json.dumps(provenance.keys, indent=1)},
            keep_last_n=config.keep_last,
            save_rng=config.rng,
        )
        return f"saved {path}"

    def evaluate(self, split: str) -> float | None:
        """Loss on `valid` or `test` over `evaluation.iters` global batches, or None without such data."""
        batches = self.data.evaluation_batches(split)
        if batches is None:
            return None
        return self.train_module.evaluate(batches, self.config.evaluation.iters * self.config.batch.accumulation)

    def run(self, monitors: MonitorGroup, stop: StopRequest) -> TrainingResult:
        """Train to the last step, to an exit step, or until a stop is requested."""
        config, module, window = self.config, self.train_module, _Window()
        timer = self._timer()
        batches = self.data.train_batches(self.progress.consumed_samples)
        train_loss = valid_loss = None
        interrupted = False
        while config.train and self.step < config.steps and not interrupted:
            norms = group_norms(module) if config.logging.param_norms and self._logs(self.step + 1) else {}
            lr = module.scheduler.get_base_lr()
            loss, asked_to_stop = module.train_step(batches, stop.requested)
            self.progress = self.progress.after_step(config.batch.size, config.model.seq_length)
            monitors.tick(self.step)
            window.losses.append(loss)
            interrupted = self.step < config.steps and (asked_to_stop or self.step in config.exit_steps)
            record: dict[str, Any] = {}
            if self._evaluates(self.step):
                with timer.paused():
                    valid_loss = self.evaluate("valid")
                record["valid/loss"] = valid_loss
            if self._logs(self.step) or record:
                train_loss = window.close()
                record |= {"train/loss": train_loss, "lr": lr, "grad_norm": module.grad_norm(), **norms}
                record |= router_losses(module)
                self._log(monitors, record, timer)
            if config.save is not None and (self.step in self.save_steps or interrupted):
                with timer.paused():
                    monitors.say(self.save(config.save))
        if not config.train:
            valid_loss = self.evaluate("valid")
        test_loss = None if interrupted else self.evaluate("test")
        at_the_end = {"valid/loss": None if config.train else valid_loss, "test/loss": test_loss}
        if measured := {name: loss for name, loss in at_the_end.items() if loss is not None}:
            monitors.log({"step": self.step, "tokens": self.tokens, **measured})
        return TrainingResult(
            self.step,
            self.tokens,
            flops_a_token(module.plan) * self.tokens,
            train_loss,
            valid_loss,
            test_loss,
            self.log_dir,
            interrupted,
        )

    def _logs(self, step: int) -> bool:
        return step % self.config.logging.interval == 0 or step in (1, self.config.steps)

    def _evaluates(self, step: int) -> bool:
        evaluation = self.config.evaluation
        return evaluation.valid and (step == self.config.steps or step % evaluation.interval == 0)

    def _log(self, monitors: MonitorGroup, values: Mapping[str, Any], timer: ThroughputTimer) -> None:
        speed, memory = timer.window(self.step, self.tokens), peak_memory(self.runtime.device)
        monitors.log({"step": self.step, "tokens": self.tokens, **values, **speed, **memory})

    def _timer(self) -> ThroughputTimer:
        device = self.runtime.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        timer = ThroughputTimer(
            total_steps=self.config.steps,
            flops_per_token=flops_a_token(self.train_module.plan),
            num_devices=self.runtime.world_size,
            peak_tflops=self.config.logging.peak_tflops or peak_tflops(name),
        )
        timer.start(self.step, self.tokens)
        return timer


def _sample_counts(
    progress: Progress, steps: int, batch: BatchConfig, evaluation: EvaluationConfig
) -> tuple[int, int, int]:
    """Numbers of training (from the start of the order), validation and test samples that a run reads."""
    of_one = evaluation.iters * batch.size
    train = progress.consumed_samples + max(0, steps - progress.step) * batch.size
    return train, of_one if evaluation.valid else 0, of_one if evaluation.test else 0


def _save_steps(config: SaveConfig, steps: int) -> set[int]:
    """Steps at which to save, including the last step."""
    return save_iterations(steps, config.scale, config.factor, config.extra_steps) | {steps}


def wandb_arguments(config: WandbConfig, run_id: str | None) -> dict[str, Any]:
    """Arguments of WandbMonitor."""
    return {
        "project": config.project,
        "group": config.group,
        "team": config.team,
        "run_name": config.run_name,
        "host": config.host,
        "mode": config.mode,
        "run_id": run_id,
    }


def train(
    config: RunConfig,
    runtime: Runtime,
    console: bool = True,
    watch: Monitor | None = None,
    stop: StopRequest | None = None,
) -> TrainingResult:
    """Build the run, train, and return the result. Monitors run only on the first process.

    console: whether to print progress; False for one of many parallel runs.
    watch: an additional monitor.
    stop: lets the caller request a stop, like SIGTERM.
    """
    with contextlib.ExitStack() as stack:
        if config.save is not None and config.train:
            stack.enter_context(folder_lock(config.save.directory))
        return _train(Trainer(config, runtime), console, watch, stop or StopRequest())


def _train(trainer: Trainer, console: bool, watch: Monitor | None, stop: StopRequest) -> TrainingResult:
    config, runtime, logging = trainer.config, trainer.runtime, trainer.config.logging
    with (
        build_monitors(
            rank=runtime.rank,
            log_dir=trainer.log_dir,
            console=console,
            wandb=None if logging.wandb is None else wandb_arguments(logging.wandb, trainer.run_id),
            tensorboard_dir=logging.tensorboard_dir,
            total_steps=config.steps,
            resume_step=trainer.step or None,
        ) as monitors,
        stop.listening() if config.train else contextlib.nullcontext(),  # an evaluation has nothing to save
    ):
        if watch is not None:
            monitors.monitors.append(watch)
        header = run_header(config, trainer.train_module.plan, runtime, trainer.corpus)
        from_rank_0(lambda: monitors.start(header))
        for notice in trainer.notices:
            monitors.say(notice)
        return trainer.run(monitors, stop)
