"""Tokens a second over the last log window, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ThroughputTimer:
    """Measures from one log step to the next; evaluation and saving are taken out with `paused()`.

    total_steps: updates of the whole training. flops_per_token: see `flops.flops_per_token`. num_devices:
    those that share the work. peak_tflops: of one device, for MFU. clock: seconds that only grow.
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
        """Begin a window after `step` updates and `tokens` tokens (of all devices), as on a resume."""
        self._step, self._tokens, self._began, self._paused = step, tokens, self._clock(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def window(self, step: int, tokens: int) -> dict[str, float]:
        """Figures of the window up to now, which ends here; empty if no update or no time lies in it.

        step_seconds; tokens_per_second of all devices; eta_seconds, by this window's speed and without what
        evaluations will take; tflops a device; mfu, the part of peak_tflops reached (PaLM, appendix B).
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
