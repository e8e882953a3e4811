"""Training runs in real processes, which tests signal, stop and damage."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.monitoring import read_metrics
from tests.launch.processes import marked, wait_until
from tests.training.harness import ROOT, configuration, environment, free_port

started: list[Run] = []  # whose processes end with their test


class Run:
    """A run without an end, in two processes of two loader processes each, that has trained some steps."""

    def __init__(
        self, corpus: Path, folder: Path, command: list[str], variables: Mapping[str, str] | None = None, **changes: Any
    ) -> None:
        options = {"train_iters": 100_000, "eval_iters": 0, "num_workers": 2, **changes}
        config = configuration(corpus, folder / "log", **options)
        config |= {"save": str(folder / "ck")}
        (folder / "config.json").write_text(json.dumps(config))
        if "torch.distributed.run" in command:
            command = [*command[:2], "--master-port", str(free_port()), *command[2:]]
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.output = folder / "output"
        self._command, self._variables = command, variables or {}
        self.start()
        self.wait_for_steps(3)

    def start(self) -> None:
        """Start it, or start it again once it has ended."""
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self._command, str(self.folder / "config.json")],
                cwd=ROOT,
                env=environment(MARK=self.mark, **self._variables),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(self)

    def wait_for_steps(self, count: int) -> None:
        metrics = self.folder / "log" / "metrics.jsonl"
        wait_until(
            lambda: self.process.poll() is not None or (metrics.is_file() and metrics.read_text().count("\n") > count),
            240,
            "no step in time",
        )
        assert self.process.poll() is None, self.output.read_text()

    def workers(self) -> list[int]:
        """The processes of rank 0 and 1: the children of the launcher, in the order of their start."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sorted(map(int, children.split()))

    def end(self) -> int:
        """The exit code, once every process is gone."""
        code = self.process.wait(timeout=120)
        wait_until(lambda: not marked(self.mark), 60, f"processes are left: {marked(self.mark)}")
        return code

    def assert_saved(self) -> None:
        """The step that is saved must be the last one trained."""
        step = read_metrics(self.folder / "log" / "metrics.jsonl")[1][-1]["step"]
        assert (self.folder / "ck" / "latest").read_text().strip() == f"global_step{step}", self.output.read_text()
        assert step > 3 and "stopped on request" in self.output.read_text()
