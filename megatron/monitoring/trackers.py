"""Weights & Biases and TensorBoard. Both libraries are optional and imported on request."""

from __future__ import annotations

import importlib
import netrc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron.monitoring.base import Record
from megatron.monitoring.jsonl import to_plain
from megatron.optional import import_optional

# By default wandb's service writes the file of a run every 15 s, and older versions write it in blocks of 32 KiB. What
# is not written is lost if the job is killed.
_FLUSH_INTERVAL, _FLUSH_SECONDS = "x_transaction_log_flush_interval", 0.5


class WandbMonitor:
    """One run on Weights & Biases, with the header as its configuration. Offline without a login.

    mode: `online`, `offline` or `disabled`. None uses WANDB_MODE; if that is unset, the run is online if WANDB_API_KEY
    or netrc has an API key for `host`. Offline runs are in `log_dir`/wandb, for `wandb sync`.
    run_id: the id of the run on the server; None for a new one. A resume with the id of the run that it continues is
    the same run there.
    Raises ConfigError at construction if the package is missing.
    """

    def __init__(
        self,
        *,
        log_dir: Path,
        project: str | None,
        group: str | None = None,
        team: str | None = None,
        run_name: str | None = None,
        host: str = "https://api.wandb.ai",
        mode: str | None = None,
        run_id: str | None = None,
    ) -> None:
        self._wandb = import_optional("wandb", "wandb", "use_wandb", otherwise="unset use_wandb")
        self._log_dir, self._host = log_dir, host
        self._identity = {"project": project, "group": group, "entity": team, "name": run_name}
        if run_id is not None:
            self._identity |= {"id": run_id, "resume": "allow"}
        self._mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_login(host) else "offline")
        self._run: Any = None
        self._last_step = self._repeated = -1

    def start(self, header: Mapping[str, Any]) -> None:
        # `console="off"`: otherwise wandb would redirect stdout, including the live line.
        settings = self._wandb.Settings(base_url=self._host, console="off", silent=True)
        if hasattr(settings, _FLUSH_INTERVAL):
            setattr(settings, _FLUSH_INTERVAL, _FLUSH_SECONDS)
        self._run = self._wandb.init(
            **self._identity,
            dir=str(self._log_dir),
            mode=self._mode,
            config=to_plain(header),
            settings=settings,
        )

    def log(self, record: Record) -> None:
        step = int(record["step"] or 0)
        if step <= self._repeated:
            return
        if step < self._last_step:
            raise ValueError(f"wandb needs increasing steps: got step {step} after {self._last_step}")
        self._last_step = step
        self._run.log({name: value for name, value in record.items() if value is not None}, step=step)

    def log_later(self, record: Record) -> None:
        """Log values `eval/...` of a checkpoint. The axis is `eval/step`, which can be before the last step."""
        self._run.define_metric("eval/*", step_metric="eval/step")
        self._run.log({name: value for name, value in record.items() if name.startswith("eval/")})

    def rewind(self, step: int) -> None:
        """wandb cannot take records back: leave out the repeated steps, until the run gets further."""
        self._repeated = self._last_step

    def close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            # wandb shows a run that is closed during an exception as failed.
            run.finish(exit_code=int(isinstance(sys.exception(), Exception)))


def has_login(host: str) -> bool:
    """Whether wandb finds an API key for `host` without asking, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(urlsplit(host).hostname or host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


class TensorBoardMonitor:
    """Writes scalars by step and the header as text to `directory`.

    resume_step: later events are purged. Raises ConfigError at construction if the package is missing.
    """

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        import_optional("tensorboard", "tensorboard", "tensorboard_dir", otherwise="unset tensorboard_dir")
        self._writer_class = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._directory, self._resume_step = directory, resume_step
        self._writer: Any = None

    def start(self, header: Mapping[str, Any]) -> None:
        purge = None if self._resume_step is None else self._resume_step + 1
        self._writer = self._writer_class(log_dir=str(self._directory), purge_step=purge)
        for name, value in header.items():
            self._writer.add_text(name, f"```\n{to_plain(value)}\n```")

    def log(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Purge the events after `step`."""
        self._writer.close()
        self._writer = self._writer_class(log_dir=str(self._directory), purge_step=step + 1)

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
