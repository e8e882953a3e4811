"""A warm worker: one process that trains trials one after another.

A worker pays once for imports, the process group and the operating system's cache of the data. In addition to its
steps, a trial costs a tenth of a second at proxy sizes, for the model, the optimizer and the index. The worker
records how much of its time training steps took.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import Trial, TrialState

from megatron.errors import TrainingError
from megatron.neox_arguments.resolve import run_config
from megatron.processes import share_machine
from muneox.search.claims import BEAT_SECONDS, Claim, Claims, Worker
from muneox.search.proxy import TrialRun, trial_args
from muneox.search.setup import Setup
from muneox.search.stages import Stage, confirm_stage, search_stage

if TYPE_CHECKING:
    from megatron.training.stop import StopRequest

POLL_SECONDS = 1.0


@dataclass
class WorkerTimes:
    """Seconds since the worker process started, seconds in training steps and in evaluation, and number of runs."""

    beat: int = 0
    wall: float = 0.0
    steps: float = 0.0
    evaluation: float = 0.0
    runs: int = 0


class Heartbeat:
    """Thread that updates the worker's heartbeat in the study and ends the process when its parent has exited."""

    def __init__(self, study: Any, worker: Worker, figures: WorkerTimes, began: float, parent: int | None) -> None:
        self._study, self._worker, self._figures, self._began = study, worker, figures, began
        self._parent, self._stop = parent, threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def beat(self) -> None:
        with self._lock:
            self._figures.beat += 1
            self._figures.wall = time.monotonic() - self._began
            entry = {**asdict(self._figures), "host": self._worker.host, "pid": self._worker.pid}
            self._study.set_user_attr(self._worker.key, entry)

    def __enter__(self) -> Heartbeat:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.beat()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(1.0):
            if self._parent is not None and os.getppid() != self._parent:
                os.kill(os.getpid(), signal.SIGTERM)  # an orphan would keep running unnoticed
                return
            if time.monotonic() - last >= BEAT_SECONDS:
                last = time.monotonic()
                with contextlib.suppress(Exception):  # the server can be briefly unreachable; the next beat retries
                    self.beat()


class Watch:
    """Monitor that measures step and evaluation time and lets a pruner stop the run.

    Each step ends with a `tick`, so the time up to a tick counts as step time. An evaluation ends with a record that
    has a validation loss, so the time between a tick and such a record counts as evaluation time.
    """

    def __init__(self, stop: StopRequest, trial: Trial | None, offset: int) -> None:
        self.steps = self.evaluation = 0.0
        self.pruned = False
        self._stop, self._trial, self._offset = stop, trial, offset
        self._mark = time.monotonic()

    def start(self, header: Mapping[str, Any]) -> None:
        self._mark = time.monotonic()

    def tick(self, step: int) -> None:
        now = time.monotonic()
        self.steps += now - self._mark
        self._mark = now

    def log(self, record: Mapping[str, Any]) -> None:
        loss = record.get("valid/loss")
        if loss is not None:
            self.evaluation += time.monotonic() - self._mark
        loss = record.get("train/loss") if loss is None else loss
        if self._trial is not None and loss is not None:
            self._report(self._trial, self._offset + int(record["step"] or 0), float(loss))
        self._mark = time.monotonic()

    def close(self) -> None: ...

    def _report(self, trial: Trial, step: int, loss: float) -> None:
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step not in known:  # a resumed trial repeats its steps
            trial.report(loss, step)
        if trial.should_prune():
            self.pruned = self._stop.requested = True


def train_run(
    setup: Setup, claim: Claim, run: TrialRun, log_dir: Path, pruning: Trial | None, offset: int
) -> tuple[dict[str, Any], Watch]:
    """Train one run of a trial.

    Returns its figures (loss in nats per token, tokens, FLOPs, seconds, log folder) and its step and evaluation
    times. Raises TrainingError if the loss is not finite.
    """
    from megatron.initialize import start_worker
    from megatron.training.stop import StopRequest
    from megatron.training.trainer import train

    began = time.monotonic()
    shutil.rmtree(log_dir, ignore_errors=True)  # left over from a killed worker
    args = trial_args(setup.args, claim.params, run, log_dir).replace(
        wandb_group=setup.args.wandb_group or setup.name,
        wandb_run_name=f"{setup.name}-{log_dir.parent.name}-{run.name}",
    )
    config = run_config(args)
    runtime = start_worker(config.launch, config.engine.layout, config.seed)  # seeds; the process group stays
    stop = StopRequest()
    watch = Watch(stop, pruning, offset)
    result = train(config, runtime, console=False, watch=watch, stop=stop)
    if result.interrupted and not watch.pruned:
        raise KeyboardInterrupt  # SIGTERM: another worker can claim the trial
    figures = {
        "loss": result.loss,
        "train_loss": result.train_loss,
        "tokens": result.tokens,
        "flops": result.flops,
        "seconds": time.monotonic() - began,
        "log_dir": str(log_dir),
    }
    return figures, watch


class Trials:
    """Trains the claimed trials of one stage."""

    def __init__(self, setup: Setup, stage: Stage, claims: Claims, figures: WorkerTimes) -> None:
        self.setup, self.stage, self.claims, self.figures = setup, stage, claims, figures

    def work(self, claim: Claim) -> None:
        """Train the remaining runs of a claimed trial and record its outcome."""
        steps = self.setup.steps
        prunes = self.setup.space.pruner != "none" and self.stage.candidates is None
        for index, run in enumerate(self.stage.runs):
            if run.name in claim.runs:
                continue
            log_dir = self.setup.out / self.stage.study.study_name / f"trial-{claim.number:04d}" / run.name
            try:
                figures, watch = train_run(
                    self.setup, claim, run, log_dir, claim.trial if prunes else None, index * steps
                )
            except TrainingError as error:
                note = {"diverged": f"{run.name}: {error}"}
                self.claims.record_run(claim, run.name, {"loss": float("inf"), "log_dir": str(log_dir)})
                self.claims.finish(claim, TrialState.COMPLETE, float("inf"), note)
                return
            except Exception as error:
                self.claims.give_up(claim, f"{run.name}: {error!r}")
                raise
            finally:
                gc.collect()  # the engine contains reference cycles
            self.figures.steps += watch.steps
            self.figures.evaluation += watch.evaluation
            self.figures.runs += 1
            self.claims.record_run(claim, run.name, figures)
            if watch.pruned:
                self.claims.finish(claim, TrialState.PRUNED)
                return
        losses = [claim.runs[run.name]["loss"] for run in self.stage.runs]
        self.claims.finish(claim, TrialState.COMPLETE, sum(losses) / len(losses))


def run_worker(
    setup: Setup,
    began: float,
    index: int = 0,
    parent: int | None = None,
    poll: Callable[[float], None] = time.sleep,
) -> None:
    """Train trials of the search and of its confirmation until all are finished.

    began: time.monotonic() when the process was started; wall time counts from it. index: this worker's number on its
    host. parent: id of the process whose exit ends this worker.
    """
    share_machine(index, setup.workers)
    from megatron.initialize import start_worker

    stage: Stage | None = search_stage(setup)
    assert stage is not None
    worker, figures, search = Worker.here(), WorkerTimes(), stage
    config = run_config(setup.args)
    start_worker(config.launch, config.engine.layout, config.seed)
    with Heartbeat(search.study, worker, figures, began, parent) as heart:
        while stage is not None:
            claims = stage.claims(setup, worker)
            trials = Trials(setup, stage, claims, figures)
            while not claims.is_over():
                claim = claims.next()
                if claim is None:
                    poll(POLL_SECONDS)
                    continue
                trials.work(claim)
                heart.beat()
            stage = confirm_stage(setup, search) if stage is search else None
