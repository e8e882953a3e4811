"""Build the monitors of a run from its logging options."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError
from megatron.monitoring.base import Monitor, MonitorGroup
from megatron.monitoring.console import ConsoleMonitor
from megatron.monitoring.jsonl import JsonlMonitor
from megatron.monitoring.trackers import TensorBoardMonitor, WandbMonitor


def default_log_dir(config_name: str, now: datetime.datetime) -> Path:
    """`runs/<config name>-<time>` in the working directory, for example `runs/small-20260301-093005`."""
    name = re.sub(r"[^\w.+-]+", "_", config_name).strip("._") or "run"
    return Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}"


def build_monitors(
    *,
    log_dir: Path,
    wandb: Mapping[str, Any] | None = None,
    tensorboard_dir: Path | str | None = None,
    console: bool = True,
    total_steps: int | None = None,
    resume_step: int | None = None,
    rank: int = 0,
) -> MonitorGroup:
    """Build the monitors of a run: `<log_dir>/metrics.jsonl` always, others on request. Ranks other than 0 get none.

    wandb: arguments of WandbMonitor. resume_step: step of the checkpoint that the run continues from, None for a new
    run. Raises ConfigError if log_dir cannot be created or an optional package is missing.
    """
    if rank != 0:
        return MonitorGroup()
    log_dir = Path(log_dir)
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"log_dir: {log_dir} cannot be created: {error.strerror}") from error
    monitors: list[Monitor] = [JsonlMonitor(log_dir / "metrics.jsonl", resume_step)]
    if wandb is not None:
        monitors.append(WandbMonitor(log_dir=log_dir, **wandb))
    if tensorboard_dir is not None:
        monitors.append(TensorBoardMonitor(Path(tensorboard_dir), resume_step))
    if console:
        monitors.append(ConsoleMonitor(total_steps))
    return MonitorGroup(monitors)
