"""From the configuration's few logging values to the monitors of a run."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from megatron.errors import ConfigError
from megatron.monitoring.base import Monitor, MonitorGroup
from megatron.monitoring.console import ConsoleMonitor
from megatron.monitoring.jsonl import JsonlMonitor
from megatron.monitoring.trackers import TensorBoardMonitor, WandbMonitor


def default_log_dir(config_name: str, now: datetime.datetime) -> Path:
    """`runs/<config name>-<time>` below the working directory, such as `runs/small-20260301-093005`."""
    name = re.sub(r"[^\w.+-]+", "_", config_name).strip("._") or "run"
    return Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}"


def build_monitors(
    *,
    log_dir: Path,
    use_wandb: bool | None = False,
    wandb_project: str | None = None,
    wandb_group: str | None = None,
    wandb_team: str | None = None,
    wandb_run_name: str | None = None,
    wandb_host: str = "https://api.wandb.ai",
    wandb_mode: str | None = None,
    tensorboard_dir: Path | str | None = None,
    console: bool = True,
    total_steps: int | None = None,
    resume_step: int | None = None,
    rank: int = 0,
) -> MonitorGroup:
    """The monitors of a run: `<log_dir>/metrics.jsonl` always, others where asked for; none on other ranks.

    resume_step: the step of the checkpoint that the run goes on from, None for a new run.
    Raises ConfigError if log_dir cannot be made, or an optional package is missing.
    """
    if rank != 0:
        return MonitorGroup()
    log_dir = Path(log_dir)
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"log_dir: {log_dir} cannot be made: {error.strerror}") from error
    monitors: list[Monitor] = [JsonlMonitor(log_dir / "metrics.jsonl", resume_step)]
    if use_wandb:
        monitors.append(
            WandbMonitor(
                log_dir=log_dir,
                project=wandb_project,
                group=wandb_group,
                team=wandb_team,
                run_name=wandb_run_name,
                host=wandb_host,
                mode=wandb_mode,
            )
        )
    if tensorboard_dir is not None:
        monitors.append(TensorBoardMonitor(Path(tensorboard_dir), resume_step))
    if console:
        monitors.append(ConsoleMonitor(total_steps))
    return MonitorGroup(monitors)
