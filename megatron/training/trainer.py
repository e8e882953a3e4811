"""The training loop: steps, logging, evaluation, checkpoints, and a clean stop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import check_own_folder, folder_lock, save_iterations
from megatron.checkpointing.collective import from_rank_0
from megatron.errors import TrainingError
from megatron.initialize import Runtime
from megatron.monitoring import (
    Monitor,
    MonitorGroup,
    ProfilerMonitor,
    ThroughputTimer,
    build_monitors,
    default_log_dir,
    peak_memory,
)
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
from megatron.training.console import TrainingResult, opening
from megatron.training.data import RunData, fingerprint
from megatron.training.engine import build_train_module
from megatron.training.faults import BadStep, Faults, fault_record
from megatron.training.model_from_config import model_plan
from megatron.training.objective import Batch, masked_token
from megatron.training.report import flops_a_token, group_norms, router_losses, run_header
from megatron.training.resume import (
    Progress,
    data_section,
    describe_new_data,
    describe_new_optimizer,
    describe_resume,
    free_section,
    nothing_to_load,
)
from megatron.training.run_checkpoints import Checkpoints
from megatron.training.stop import StopRequest
from megatron.training.train_module import StepOutcome, TrainModule


class _Window:
    """Losses of the updates since the last logged record."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._last = math.nan

    def add(self, outcome: StepOutcome) -> None:
        """A loss without an update counts only in a window without any update."""
        self._last = outcome.loss
        if outcome.fault is None:
            self._losses.append(outcome.loss)

    def close(self) -> float:
        """Mean loss; starts a new window."""
        mean = sum(self._losses) / len(self._losses) if self._losses else self._last
        self._losses.clear()
        return mean


class Trainer:
    """One training run. The constructor builds everything that a step needs."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        runtime.activity.begin("building the model", long=True)
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
        self.faults = Faults(config.faults)
        self.checkpoints = Checkpoints(config, self.train_module, runtime, self.data_section)
        runtime.activity.begin("loading the checkpoint", long=True)
        continued = None if config.load is None else self._load(config.load)
        if config.save is not None and config.train:
            check_own_folder(config.save.directory, continued)
        self._vocab_size = tokenizer.vocab_size
        self.data = self._build_data()

    def _build_data(self) -> RunData:
        """Data for the remaining steps."""
        config = self.config
        samples = _sample_counts(self.progress, config.steps, config.batch, config.evaluation)
        self.runtime.activity.begin("building the data set", long=True)
        data = RunData(config.data, self.runtime, self._vocab_size, config.batch, samples)
        if samples[2] and not data.has("test"):
            self.notices.append(f"split {config.data.split!r} leaves no text to the test set: the run has no test loss")
        return data

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.progress.step

    @property
    def tokens(self) -> int:
        """Number of tokens trained on so far."""
        return self.progress.tokens

    def _load(self, config: LoadConfig) -> Path | None:
        """Resume from the checkpoint, if there is one. Returns the checkpoint that this run continues."""
        loaded = self.checkpoints.load(config)
        if loaded is None:
            self.notices.append(nothing_to_load(config, self.config.train))
            return None
        if config.finetune:
            self.notices.append(f"took the weights of {loaded.path}: a new run starts at step 0")
            return None
        self.progress = Progress.of(loaded)
        self.faults.restore(loaded.client_state.get("faults"))
        self.notices.append(describe_resume(loaded, self.progress, self.config))
        if config.override_data and (changes := describe_new_data(loaded, self.data_section)):
            self.progress = dataclasses.replace(self.progress, consumed_samples=0)
            self.notices.append(changes)
        if config.override_optimizer and (changes := describe_new_optimizer(loaded, self.config.engine.optimizer)):
            self.notices.append(changes)
        save = self.config.save
        if save is not None and loaded.path.parent == save.directory.absolute():  # else this run is a branch
            self.run_id = loaded.client_state.get("run", {}).get("id", self.run_id)
        return loaded.path

    def save(self, config: SaveConfig) -> list[str]:
        """Save a checkpoint of the current step. Returns lines that say what has been saved."""
        state = {
            **self.progress.position,
            "faults": self.faults.section(),
            "run": {"id": self.run_id, "free": free_section(self.config)},
        }
        self.runtime.activity.begin(f"saving step {self.step}", long=True)
        return self.checkpoints.save(config, self.step, state)

    def evaluate(self, split: str) -> float | None:
        """Loss on `valid` or `test` over `evaluation.iters` global batches, or None without such data."""
        batches = self.data.evaluation_batches(split)
        if batches is None:
            return None
        activity = self.runtime.activity
        activity.begin(f"evaluating at step {self.step}", long=self.config.engine.compile)  # it may compile
        batches = activity.advancing(batches)
        return self.train_module.evaluate(batches, self.config.evaluation.iters * self.config.batch.accumulation)

    def run(self, monitors: MonitorGroup, stop: StopRequest) -> TrainingResult:
        """Train to the last step, to an exit step, or until a stop is requested."""
        config, module, window = self.config, self.train_module, _Window()
        timer, began = self._timer(), time.monotonic()
        activity, first = self.runtime.activity, self.step
        batches = activity.advancing(self.data.train_batches(self.progress.consumed_samples))
        train_loss = valid_loss = None
        interrupted = False
        while config.train and self.step < config.steps and not interrupted:
            activity.begin(f"step {self.step + 1}", long=config.engine.compile and self.step == first)
            norms = group_norms(module) if config.logging.param_norms and self._logs(self.step + 1) else {}
            lr = module.scheduler.get_base_lr()
            outcome = module.train_step(batches, stop.requested, self.faults.refuse)
            self.progress = self.progress.after_step(config.batch.size, config.model.seq_length)
            monitors.tick(self.step)
            say_all(monitors, self.checkpoints.poll())
            interrupted = self.step < config.steps and (outcome.stopped or self.step in config.exit_steps)
            record: dict[str, Any] = {}
            bad = self.faults.note(outcome, self.step)
            if bad is not None:
                record |= self._respond(bad, monitors)
                if bad.policy == "rewind":
                    batches = self._rewind(bad, record, monitors)
                    timer.start(self.step, self.tokens)
                    window, interrupted = _Window(), outcome.stopped
                    continue
            window.add(outcome)
            if interrupted and outcome.stopped:
                monitors.say(f"stop requested: step {self.step} is complete" + (", saving" if config.save else ""))
            if self._evaluates(self.step):
                monitors.status("evaluating")
                with timer.paused():
                    valid_loss = self.evaluate("valid")
                record["valid/loss"] = valid_loss
            if self._logs(self.step) or record:
                train_loss = window.close()
                record |= {"train/loss": train_loss, "lr": lr, "grad_norm": module.grad_norm(), **norms}
                record |= router_losses(module)
                self._log(monitors, record, timer)
            if config.save is not None and (self.step in self.save_steps or interrupted):
                monitors.status("saving")
                with timer.paused():
                    say_all(monitors, self.save(config.save))
        activity.begin("finishing the save", long=True)
        say_all(monitors, self.checkpoints.finish())
        if not config.train:
            valid_loss = self.evaluate("valid")
        test_loss = None if interrupted else self.evaluate("test")
        activity.begin("the end", long=True)
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
            from_rank_0(self.checkpoints.last) if config.save is not None and config.train else None,
            time.monotonic() - began,
        )

    def _respond(self, bad: BadStep, monitors: MonitorGroup) -> dict[str, Any]:
        """Say what was bad. Returns its metrics. Raises TrainingError if the run ends here."""
        size = self.config.batch.size
        batch = self.data.locate(self.progress.consumed_samples - size, size)
        record = fault_record(bad, batch, self.faults.skipped)
        if bad.policy != "raise":
            monitors.say(self.faults.describe(bad, batch))
            return record
        say_all(monitors, self.checkpoints.finish())
        norm = self.train_module.grad_norm()
        at_end = {"step": self.step, "tokens": self.tokens, "train/loss": bad.loss, "grad_norm": norm}
        monitors.log({**at_end, **record})
        raise TrainingError(self.faults.error(bad, batch, self.checkpoints.last()))

    def _rewind(self, bad: BadStep, record: dict[str, Any], monitors: MonitorGroup) -> Iterator[Batch]:
        """Return to the last intact checkpoint and continue its run after the bad batch. Returns the next batches."""
        self.runtime.activity.begin("loading the checkpoint", long=True)
        say_all(monitors, self.checkpoints.finish())
        loaded = self.checkpoints.reload(bad.what)
        there, size = Progress.of(loaded), self.config.batch.size
        first = self.progress.consumed_samples - size
        rewind = {"from_step": self.step, "to_step": there.step, "first_sample": first, "samples": size}
        self.faults.rewound(loaded.client_state.get("faults"), rewind)
        self.progress = dataclasses.replace(there, consumed_samples=first + size)
        self.data = self._build_data()  # the run now reads further
        monitors.rewind(self.step)
        monitors.log({"step": self.step, "tokens": self.tokens, **record, "fault/rewound_from_step": bad.step})
        monitors.say(
            f"rewound to {loaded.path} at step {self.step}; the data continues after sample "
            f"{self.progress.consumed_samples:,}"
        )
        return self.data.train_batches(self.progress.consumed_samples)

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


def say_all(monitors: MonitorGroup, lines: Sequence[str]) -> None:
    """Show each line."""
    for line in lines:
        monitors.say(line)


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
        profiling = config.logging.profiling
        profiler = None if profiling is None else ProfilerMonitor(**vars(profiling), rank=runtime.rank)
        trainer = Trainer(config, runtime)
        stack.callback(trainer.checkpoints.close)
        added = [monitor for monitor in (watch, profiler) if monitor is not None]
        return _train(trainer, console, added, stop or StopRequest())


def _train(trainer: Trainer, console: bool, added: Sequence[Monitor], stop: StopRequest) -> TrainingResult:
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
        monitors.monitors.extend(added)
        header = run_header(config, trainer.train_module.plan, runtime, trainer.corpus)
        from_rank_0(lambda: monitors.start(header))
        plan = trainer.train_module.plan
        say_all(monitors, opening(config, plan, runtime, header["device"], trainer.corpus, trainer.log_dir))
        say_all(monitors, trainer.notices)
        return trainer.run(monitors, stop)
