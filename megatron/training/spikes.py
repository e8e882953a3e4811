"""Loss spikes: losses far above those of the last steps, by a statistic that spikes do not move."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

MAD_TO_STANDARD_DEVIATION = 1.4826
"""1 / (quantile of 3/4 of the normal distribution); Rousseeuw and Croux 1993, doi:10.1080/01621459.1993.10476408."""

SMALLEST_DEVIATION = 0.001
"""Smallest standard deviation, as a share of the median: losses that hardly differ have no spikes."""


class LossSpikes:
    """The last `window` finite losses, and how far another one is above them.

    The statistic is the Hampel identifier: (loss - median) / (1.4826 * median absolute deviation), over the losses of
    the last `window` steps. A loss is a spike if it exceeds `threshold`. No loss is one before `window` steps.
    """

    def __init__(self, window: int, threshold: float) -> None:
        self.threshold = threshold
        self._losses: deque[float] = deque(maxlen=window)

    @property
    def losses(self) -> list[float]:
        """The losses that the next one is compared with, oldest first. They are the whole state."""
        return list(self._losses)

    def restore(self, losses: Sequence[float]) -> None:
        """Continue after `losses`; of more than `window`, the last ones count."""
        self._losses.clear()
        self._losses.extend(losses)

    def add(self, loss: float) -> None:
        """Note the loss of a step. One that is not finite is left out."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def deviation(self, loss: float) -> float | None:
        """Number of robust standard deviations from the median to `loss`. None before `window` losses."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return None
        median = statistics.median(self._losses)
        absolute = statistics.median(abs(x - median) for x in self._losses)
        return (loss - median) / max(
            MAD_TO_STANDARD_DEVIATION * absolute, SMALLEST_DEVIATION * abs(median), math.ulp(0.0)
        )

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is more than `threshold` deviations above the median."""
        deviation = self.deviation(loss)
        return deviation is not None and deviation > self.threshold
