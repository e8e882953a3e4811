"""Console output of a run: one line per log step, and on a terminal a live line that every step updates."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from megatron.files import discard_output
from megatron.monitoring.base import Record

# name in the record -> format
_FIELDS = {
    "train/loss": "loss {:.4f}",
    "lr": "lr {:.3e}",
    "grad_norm": "grad norm {:.3f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "tflops": "{:.3g} TFLOP/s",
}


class _Output(Console):
    """Raises BrokenPipeError where nobody reads it; rich's own answer is to end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class ConsoleMonitor:
    """Prints plain lines, and on a terminal also a live line. Files and CI logs get only the plain lines.

    The run outlives its output: once the terminal is closed or the reader of a pipe has ended, lines are dropped.

    total_steps: number of updates of the whole training, shown after the step.
    """

    def __init__(self, total_steps: int | None = None, console: Console | None = None) -> None:
        self.total_steps = total_steps
        self.console = console or _Output()
        self._live: Live | None = None
        self._last: Record = {}
        self._ticked: int | float | None = 0

    def start(self, header: Mapping[str, Any]) -> None:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def log(self, record: Record) -> None:
        self._last = record
        step = self._step(record["step"])
        # The record of an evaluation has no training loss.
        if record.get("train/loss") is not None:
            self._print(f"{step} | {format_record(record)}")
        for name in ("valid", "test"):
            if (loss := record.get(f"{name}/loss")) is not None:
                self._print(f"{step} | {name} loss {loss:.4f} | perplexity {_perplexity(loss):.4g}")
        self.tick(record["step"])

    def tick(self, step: int | float | None) -> None:
        self._ticked = step
        self._show(format_record(self._last))

    def status(self, doing: str) -> None:
        self._show(f"{doing} ...")

    def _show(self, rest: str) -> None:
        """Update the live line."""
        if self._live is not None:
            line = f"{self._step(self._ticked)} | {rest}".rstrip(" |")
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def say(self, message: str) -> None:
        self._print(message)

    def close(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            with self._writing():
                live.stop()

    def _step(self, step: int | float | None) -> str:
        return f"step {step}/{self.total_steps}" if self.total_steps else f"step {step}"

    def _print(self, line: str) -> None:
        with self._writing():
            self.console.print(Text(line), soft_wrap=True)
            self.console.file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Send the output to the null device once it cannot be written."""
        try:
            yield
        except OSError:  # also from now on, and at the end of the process, which writes what is left
            discard_output(self.console.file.fileno())


def format_record(record: Record) -> str:
    """Format the fields of a record, in the order loss, lr, grad norm, tokens/s, TFLOP/s, ETA."""
    shown = [form.format(value) for name, form in _FIELDS.items() if (value := record.get(name)) is not None]
    if (eta := record.get("eta_seconds")) is not None:
        shown.append(f"ETA {datetime.timedelta(seconds=round(eta))}" if math.isfinite(eta) else "ETA unknown")
    return " | ".join(shown)


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
