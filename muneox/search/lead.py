"""The process that the user starts: it checks the search, starts workers, shows progress and prints the result."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live

from megatron.errors import ConfigError, UserError
from megatron.neox_arguments import NeoXArgs
from muneox.cost import Cost
from muneox.search import outcome, progress
from muneox.search.claims import all_finished
from muneox.search.setup import Setup
from muneox.search.stages import Stage, confirm_stage, ranked, search_stage

POLL_SECONDS = 1.0


class WorkersGone(UserError):
    """All workers have exited, but some trials are not finished."""


class Workers:
    """The worker processes of this host. Their output goes to OUT/workers/<number>.log."""

    def __init__(self, setup: Setup) -> None:
        self._logs = setup.out / "workers"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._processes = []
        for index in range(setup.workers):
            numbers = (str(index), repr(time.monotonic()))
            command = [sys.executable, "-P", "-m", "muneox.search.worker_process", *numbers, *setup.argv]
            with self._log(index).open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        self._reported: set[int] = set()

    def _log(self, index: int) -> Path:
        return self._logs / f"{index}.log"

    def deaths(self) -> list[str]:
        """One message for each worker that has exited with an error since the last call."""
        said = []
        for index, process in enumerate(self._processes):
            if process.poll() and index not in self._reported:
                self._reported.add(index)
                lines = self._log(index).read_text(errors="replace").strip().splitlines()
                said.append(
                    f"worker {index} ended with exit code {process.returncode}: {lines[-1] if lines else 'no message'}"
                    f" (full log: {self._log(index)})"
                )
        return said

    @property
    def alive(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def stop(self) -> None:
        """Stop the running workers. Another worker can claim their unfinished trials."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            if process.poll() is None:
                process.kill()

    def join(self) -> None:
        for process in self._processes:
            process.wait()


def is_over(stage: Stage) -> bool:
    """Whether all of a stage's trials are finished."""
    return all_finished(stage.study, stage.total)


def lead(setup: Setup, target: Cost | None) -> int:
    """Run or join the search and print its outcome. Returns 1 if a trial failed, otherwise 0.

    target: cost of the target (see proxy.check), or None.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    for key in setup.space.dropped:
        console.print(f"note: {key} is left out of the space: the model has no relative positions")
    search = search_stage(setup)
    confirm = confirm_stage(setup, search) if is_over(search) else None
    if not is_over(search) or (confirm is not None and not is_over(confirm)):
        workers = Workers(setup)
        try:
            follow(search, workers, console, target, "search")
            confirm = confirm_stage(setup, search)
            if confirm is not None:
                follow(confirm, workers, console, target, "confirmation with further seeds")
            workers.join()
        except KeyboardInterrupt:
            console.print("interrupted: the same command continues the search", highlight=False)
            raise
        finally:
            workers.stop()
    print_outcome(setup, search, confirm, console, target)
    failed = [t for t in search.study.get_trials(deepcopy=False) if t.state == TrialState.FAIL]
    for trial in failed:
        console.print(f"trial {trial.number} failed: {trial.user_attrs.get('errors', ['no message'])[-1]}", style="red")
    return int(bool(failed))


@contextlib.contextmanager
def _view(stage: Stage, console: Console, target: Cost | None, title: str) -> Iterator[Callable[[], None]]:
    """Yield a function that refreshes the display: a live table on a terminal, otherwise one line per trial."""
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            yield lambda: live.update(progress.live_view(stage, target, title))
        return
    shown: set[int] = {t.number for t in stage.study.get_trials(deepcopy=False) if t.state.is_finished()}

    def lines() -> None:
        trials = stage.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in shown:
                shown.add(trial.number)
                prefix = "" if stage.candidates is None else "confirmation, "
                console.print(prefix + progress.trial_line(stage, trial), soft_wrap=True, highlight=False)
                console.print("  " + progress.status_line(trials, stage.total, target), soft_wrap=True, highlight=False)

    yield lines


def follow(stage: Stage, workers: Workers, console: Console, target: Cost | None, title: str) -> None:
    """Show the progress of a stage until it is over. Raises WorkersGone if all workers exit before."""
    with _view(stage, console, target, title) as refresh:
        while True:
            over, alive = is_over(stage), workers.alive  # in this order: the last worker can exit in between
            refresh()
            for death in workers.deaths():
                console.print(death, style="red", soft_wrap=True)
            if over:
                return
            if not alive and not is_over(stage):
                raise WorkersGone("all workers ended before the trials did; run the same command again to continue")
            time.sleep(POLL_SECONDS)


def print_outcome(
    setup: Setup,
    search: Stage,
    confirm: Stage | None,
    console: Console,
    target: Cost | None,
) -> None:
    """Print tables, verdict and warnings, write best.yml, and print the command that uses it."""
    trials = search.study.get_trials(deepcopy=False)
    order = ranked(trials)
    console.print(progress.best_table(search, trials))
    console.print(progress.status_line(trials, search.total, target), highlight=False)
    if not order:
        raise UserError("no trial ended with a finite loss: lower the learning rates of the space")
    best, compared = order[0], order
    if confirm is not None:
        confirmed = confirm.study.get_trials(deepcopy=False)
        console.print(progress.best_table(confirm, confirmed, title="the best with further seeds"))
        compared = ranked(confirmed) or order
        best = next(trial for trial in order if trial.params == compared[0].params)
    for distance, trial in outcome.neighbours(setup.space, best, trials):
        line = f"  neighbour at distance {distance:.2f}, {outcome.loss_of(trial) - outcome.loss_of(best):+.4f}: "
        console.print(line + progress.trial_line(search, trial), soft_wrap=True, highlight=False)
    noise = outcome.seed_noise([search, *([confirm] if confirm is not None else [])])
    said = outcome.verdict(compared[0], compared[1] if len(compared) > 1 else None, noise)
    console.print(said, soft_wrap=True, highlight=False)
    for warning in outcome.edge_warnings(setup.space, best, trials):
        console.print(f"edge: {warning}", style="yellow", soft_wrap=True, highlight=False)
    _print_worker_times(search, console)
    path = setup.out / "best.yml"
    outcome.write_best(path, setup, best)
    console.print(f"wrote {path}: {_shown(outcome.best_keys(setup, best))}", soft_wrap=True, highlight=False)
    _print_use(setup, path, outcome.best_keys(setup, best), console)


def _shown(values: dict[str, object]) -> str:
    return ", ".join(f"{key} {progress.value_text(value)}" for key, value in values.items())


def _print_worker_times(search: Stage, console: Console) -> None:
    """Print the share of the workers' time spent in training steps and in evaluation."""
    figures = [value for key, value in search.study.user_attrs.items() if key.startswith("worker:")]
    wall = sum(figure["wall"] for figure in figures)
    if wall:
        steps, evaluation = (sum(figure[key] for figure in figures) / wall for key in ("steps", "evaluation"))
        console.print(
            f"{len(figures)} workers, {wall:,.0f} s of wall time: {steps:.1%} in training steps, {evaluation:.1%} in "
            "evaluation",
            highlight=False,
        )


def _print_use(setup: Setup, path: Path, values: dict[str, object], console: Console) -> None:
    """Print the command that trains the target with the result.

    If the overlay conflicts with the target's files, its keys go on the command line.
    """
    train = ["python", "deepy.py", "train.py"] if Path("deepy.py").is_file() else ["muneox", "train"]
    if not setup.target_files:
        files = list(itertools.takewhile(lambda token: not token.startswith("-"), setup.proxy))
        command = [*train, *files, str(path), *setup.proxy[len(files) :]]
        console.print(f"train the proxy with it: {shlex.join(command)}", soft_wrap=True, highlight=False)
        console.print("for a wider target, name the target's files instead of the proxy's", highlight=False)
        return
    files = [*setup.target_files, str(path)]
    try:
        NeoXArgs.from_ymls(files, world_size=1)
        command = [*train, *files]
    except ConfigError as error:
        console.print(f"note: {error}", soft_wrap=True, highlight=False)
        flags = [f"--{key.replace('_', '-')}={value!r}" for key, value in values.items()]
        command = [*train, *setup.target_files, *flags]
    console.print(f"use it: {shlex.join(command)}", soft_wrap=True, highlight=False)
