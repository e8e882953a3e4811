"""Tokens per second over the last log window, and the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ThroughputTimer:
    """Measures the time from one log step to the next. `paused()` excludes evaluation and saving.

    total_steps: updates of the whole training. flops_per_token: see `flops.flops_per_token`. num_devices: devices that
    share the work. peak_tflops: peak rate of one device, for MFU. clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        flops_per_token: float | None = None,
        num_devices: int = 1,
        peak_tflops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total_steps = total_steps
        self._flops_per_token = flops_per_token
        self._num_devices = num_devices
        self._peak_tflops = peak_tflops
        self._clock = clock
        self.start(0, 0)

    def start(self, step: int, tokens: int) -> None:
        """Start a window after `step` updates and `tokens` tokens (of all devices), for example on a resume."""
        self._step, self._tokens, self._began, self._paused = step, tokens, self._clock(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the context."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def window(self, step: int, tokens: int) -> dict[str, float]:
        """End the window and return its figures. Empty if it contains no update or no time.

        step_seconds; tokens_per_second of all devices; eta_seconds at the speed of this window, without future
        evaluations; tflops per device; mfu, the share of peak_tflops reached (PaLM, appendix B).
        """
        steps, new_tokens = step - self._step, tokens - self._tokens
        seconds = self._clock() - self._began - self._paused
        self.start(step, tokens)
        if steps <= 0 or seconds <= 0:
            return {}
        figures = {
            "step_seconds": seconds / steps,
            "tokens_per_second": new_tokens / seconds,
            "eta_seconds": max(self._total_steps - step, 0) * seconds / steps,
        }
        if self._flops_per_token is not None:
            figures["tflops"] = new_tokens * self._flops_per_token / seconds / self._num_devices / 1e12
            if self._peak_tflops is not None:
                figures["mfu"] = figures["tflops"] / self._peak_tflops
        return figures
