"""The training loop: steps, log, evaluation, checkpoints, and a clean stop."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import Layout, Target, load_checkpoint, save_checkpoint, save_iterations
from megatron.initialize import Runtime
from megatron.monitoring import Monitor, MonitorGroup, ThroughputTimer, build_monitors, default_log_dir
from megatron.monitoring.flops import peak_tflops
from megatron.neox_arguments import NeoXArgs
from megatron.tokenizer import Tokenizer, build_tokenizer
from megatron.training.data import RunData
from megatron.training.engine import Trainee, build_trainee, learning_rate_schedule
from megatron.training.from_args import model_plan
from megatron.training.report import checkpoint_layout, flops_a_token, group_norms, mup_section, run_header


@dataclass
class TrainingResult:
    """Where a run ended. Losses are in nats a token, None where the run had no such data; flops are the model's."""

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
        """What the run is judged by: the held-out loss, or the training loss where none was measured."""
        return self.train_loss if self.valid_loss is None else self.valid_loss


@dataclass
class _Window:
    """Losses since the last log line."""

    losses: list[float] = field(default_factory=list)

    def close(self) -> float:
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return mean


class StopRequest:
    """Set by SIGTERM or SIGUSR1 (Slurm's warning): the loop finishes the step, saves and returns."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        def note(signum: int, frame: object) -> None:
            self.requested = True

        try:
            previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        except ValueError:  # not in the main thread: signals are the host program's business
            previous = {}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Trainer:
    """One run. Everything that a step needs is built once, here."""

    def __init__(self, args: NeoXArgs, runtime: Runtime) -> None:
        args.require("train_iters", "train_batch_size", "lr")
        self.args, self.runtime = args, runtime
        self.tokenizer: Tokenizer = build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file)
        plan = model_plan(args, self.tokenizer.vocab_size)
        self.data = RunData(args, runtime, self.tokenizer.vocab_size, args.train_iters)
        eod = self.tokenizer.eod if args.eod_mask_loss else None
        self.trainee: Trainee = build_trainee(args, runtime, plan, learning_rate_schedule(args), args.seed, eod)
        self.log_dir = Path(args.log_dir) if args.log_dir else default_log_dir(_config_name(args), datetime.now())
        self.step = self._load()
        every = save_iterations(args.train_iters, args.checkpoint_scale, args.checkpoint_factor, args.extra_save_iters)
        self.save_steps = every | {args.train_iters} if args.save else set()

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return self.step * self.args.train_batch_size * self.args.seq_length

    @cached_property
    def layout(self) -> Layout:
        """How checkpoints hold the model; made only by runs that load or save one."""
        return checkpoint_layout(self.args, self.trainee)

    def _load(self) -> int:
        """Resume from `load`, if there is a checkpoint; the step reached so far."""
        args = self.args
        if not args.load:
            return 0
        loaded = load_checkpoint(
            self.trainee.engine,
            Path(args.load),
            iteration=args.iteration,
            mup=mup_section(self.trainee),
            load_optimizer=not args.no_load_optim,
            load_rng=not args.no_load_rng,
            finetune=args.finetune,
            target=Target(self.layout, list(self.trainee.model.global_named_parameters()), self.runtime.groups.tensor),
        )
        self.trainee.scheduler.apply()  # DeepSpeed restores ZeRO's groups after the schedule
        return 0 if loaded is None or args.finetune else loaded.iteration

    def save(self) -> None:
        """Write a checkpoint of this step."""
        args = self.args
        assert args.save is not None
        consumed = self.step * args.train_batch_size
        save_checkpoint(
            self.trainee.engine,
            Path(args.save),
            self.step,
            client_state={
                "consumed_samples": consumed,
                "tokens": self.tokens,
                "mup": mup_section(self.trainee),
                "layout": self.layout.section(),
            },
            config_files={**(args.config_files or {}), "resolved.json": json.dumps(args.to_dict(), indent=1)},
            keep_last_n=args.keep_last_n_checkpoints,
            save_rng=not args.no_save_rng,
        )

    def evaluate(self, split: str) -> float | None:
        """Loss on `valid` or `test`, over eval_iters global batches."""
        batches = self.data.evaluation_batches(split)
        if batches is None:
            return None
        microbatches = self.args.eval_iters * self.args.gradient_accumulation_steps
        return self.trainee.evaluate(batches, microbatches)

    def run(self, monitors: MonitorGroup, stop: StopRequest) -> TrainingResult:
        """Train to train_iters, to exit_interval, or until asked to stop."""
        args, window = self.args, _Window()
        timer = self._timer()
        batches = self.data.train_batches(self.step * args.train_batch_size)
        train_loss = valid_loss = None
        interrupted = False
        while args.do_train and self.step < args.train_iters and not interrupted:
            norms = group_norms(self.trainee, args) if self._logs(self.step + 1) else {}
            lr = self.trainee.scheduler.get_base_lr()
            loss, asked_to_stop = self.trainee.train_step(batches, stop.requested)
            self.step += 1
            monitors.tick(self.step)
            window.losses.append(loss)
            exits = bool(args.exit_interval) and self.step % args.exit_interval == 0
            interrupted = self.step < args.train_iters and (asked_to_stop or exits)
            record: dict[str, Any] = {}
            if self._evaluates(self.step):
                with timer.paused():
                    valid_loss = self.evaluate("valid")
                record["valid/loss"] = valid_loss
            if self._logs(self.step) or record:
                train_loss = window.close()
                record |= {"train/loss": train_loss, "lr": lr, "grad_norm": self.trainee.grad_norm(), **norms}
                self._log(monitors, record, timer)
            if self.step in self.save_steps or (interrupted and args.save):
                with timer.paused():
                    self.save()
        if not args.do_train:
            valid_loss = self.evaluate("valid")
        test_loss = None if interrupted else self.evaluate("test")
        if test_loss is not None:
            monitors.log({"step": self.step, "tokens": self.tokens, "test/loss": test_loss})
        return TrainingResult(
            self.step,
            self.tokens,
            flops_a_token(self.trainee.plan) * self.tokens,
            train_loss,
            valid_loss,
            test_loss,
            self.log_dir,
            interrupted,
        )

    def _logs(self, step: int) -> bool:
        return step % self.args.log_interval == 0 or step in (1, self.args.train_iters)

    def _evaluates(self, step: int) -> bool:
        interval = self.args.eval_interval
        return bool(self.args.do_valid) and (step == self.args.train_iters or bool(interval) and step % interval == 0)

    def _log(self, monitors: MonitorGroup, values: Mapping[str, Any], timer: ThroughputTimer) -> None:
        monitors.log({"step": self.step, "tokens": self.tokens, **values, **timer.window(self.step, self.tokens)})

    def _timer(self) -> ThroughputTimer:
        device = self.runtime.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        timer = ThroughputTimer(
            total_steps=self.args.train_iters,
            flops_per_token=flops_a_token(self.trainee.plan),
            num_devices=self.runtime.world_size,
            peak_tflops=self.args.peak_theoretical_tflops or peak_tflops(name),
        )
        timer.start(self.step, self.tokens)
        return timer


def _config_name(args: NeoXArgs) -> str:
    return Path(next(iter(args.config_files or {}), "run")).stem


def train(
    args: NeoXArgs,
    runtime: Runtime,
    console: bool = True,
    watch: Monitor | None = None,
    stop: StopRequest | None = None,
) -> TrainingResult:
    """Build the run, train, and return where it ended. Monitors run on the first process only.

    console: whether the run tells its progress there, which one of many must not. watch: one more monitor. stop: lets
    the caller ask for the end, as SIGTERM does.
    """
    trainer = Trainer(args, runtime)
    with (
        build_monitors(
            rank=runtime.rank,
            log_dir=trainer.log_dir,
            console=console,
            use_wandb=bool(args.use_wandb),
            wandb_project=args.wandb_project,
            wandb_group=args.wandb_group,
            wandb_team=args.wandb_team,
            wandb_run_name=args.wandb_run_name,
            wandb_host=args.wandb_host,
            wandb_mode=args.wandb_mode,
            tensorboard_dir=args.tensorboard_dir,
            total_steps=args.train_iters,
            resume_step=trainer.step or None,
        ) as monitors,
        (stop or StopRequest()).listening() as request,
    ):
        if watch is not None:
            monitors.monitors.append(watch)
        corpus = trainer.data.fingerprint() if runtime.rank == 0 else {}
        monitors.start(run_header(args, trainer.trainee.plan, runtime, corpus))
        return trainer.run(monitors, request)
