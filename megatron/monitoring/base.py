"""The monitor protocol, and a group of monitors whose errors do not stop the training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

logger = logging.getLogger(__name__)

Record = Mapping[str, float | int | None]


class Monitor(Protocol):
    """Receives the header of a run once, then one record per log step. A record has at least an int `step`."""

    def start(self, header: Mapping[str, Any]) -> None: ...

    def log(self, record: Record) -> None: ...

    def close(self) -> None: ...


class MonitorGroup:
    """A group of monitors. As a context manager, it closes all of them on exit, also after an exception.

    If a monitor that is `required` fails to start, its error is raised. No other error in a monitor stops the
    training: a monitor that fails to start is dropped, and one that fails later is tried again at the next record.
    Each kind of failure of a monitor is reported once, as a warning.
    """

    def __init__(self, monitors: Sequence[Monitor] = ()) -> None:
        self.monitors = list(monitors)
        self._warned: set[tuple[str, str]] = set()

    def start(self, header: Mapping[str, Any]) -> None:
        """Raises the error of a required monitor."""
        for monitor in self.monitors:
            if getattr(monitor, "required", False):
                monitor.start(header)
        self.monitors = [
            monitor
            for monitor in self.monitors
            if getattr(monitor, "required", False) or self._attempt(monitor, "start", header)
        ]

    def log(self, record: Record) -> None:
        for monitor in self.monitors:
            self._attempt(monitor, "log", record)

    def tick(self, step: int) -> None:
        """Notify the monitors that show progress (those with a `tick`) that `step` updates are done."""
        for monitor in self.monitors:
            if hasattr(monitor, "tick"):
                self._attempt(monitor, "tick", step)

    def rewind(self, step: int) -> None:
        """Forget the records after `step`, which the run repeats: monitors with a `rewind`."""
        for monitor in self.monitors:
            if hasattr(monitor, "rewind"):
                self._attempt(monitor, "rewind", step)

    def say(self, message: str) -> None:
        """Show a line or a few to whoever watches the run: monitors with a `say`."""
        for monitor in self.monitors:
            if hasattr(monitor, "say"):
                self._attempt(monitor, "say", message)

    def status(self, doing: str) -> None:
        """Show what the run does between two steps: monitors with a live line, which have a `status`."""
        for monitor in self.monitors:
            if hasattr(monitor, "status"):
                self._attempt(monitor, "status", doing)

    def close(self) -> None:
        """Close every monitor. Closing twice has no effect."""
        while self.monitors:
            self._attempt(self.monitors.pop(), "close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, monitor: Monitor, method: str, *args: Any) -> bool:
        try:
            getattr(monitor, method)(*args)
        except Exception as error:
            name = type(monitor).__name__
            if (name, method) not in self._warned:
                self._warned.add((name, method))
                logger.warning("%s failed to %s; training continues: %r", name, method, error)
            return False
        return True
