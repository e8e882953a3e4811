"""Ends a job of several processes in which one hangs, and names that process. Knows nothing of models or training."""

from megatron.watchdog.activity import Activity
from megatron.watchdog.watchdog import Watchdog

__all__ = ["Activity", "Watchdog"]
