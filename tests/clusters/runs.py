"""Runs of the real trainer on the two hosts: what they save, and whether a process of theirs is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.monitoring import read_metrics
from tests.clusters.hosts import Hosts
from tests.launch.processes import wait_until
from tests.training.harness import ROOT, configuration, environment, losses

STEPS = 300
ENDLESS = 100_000


class Run:
    """A folder with a configuration, its metrics and checkpoints, and the processes that train it on the hosts."""

    def __init__(self, hosts: Hosts, corpus: Path, folder: Path, steps: int = STEPS, **changes: Any) -> None:
        self.hosts, self.folder = hosts, folder
        paths = {"save": str(folder / "ck"), "load": str(folder / "ck")}
        config = configuration(corpus, folder / "log", train_iters=steps, eval_iters=0, num_workers=1)
        self.config = {**config, **paths, **changes}
        self.file = folder / "config.json"
        self.file.write_text(json.dumps(self.config))
        (folder / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
        self.metrics = folder / "log" / "metrics.jsonl"
        self.output = folder / "output"

    def environment(self, **changes: str) -> dict[str, str]:
        """Has this Python first in PATH."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        return environment(PATH=path, **changes)

    def start(self, *command: str, host: str = "node1", **variables: str) -> subprocess.Popen[bytes]:
        """Run `command` on a host, in the folder of this project."""
        output = self.output if host == "node1" else self.folder / f"output of {host}"
        return self.hosts.start(host, command, self.environment(**variables), ROOT, output)

    def deepy(self, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        """Run deepy.py with the hostfile."""
        command = ["python", "deepy.py", "train.py", str(self.file), "--hostfile", str(self.folder / "hostfile")]
        return self.start(*command, *options, **variables)

    def mpirun(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start configs/launch/mpirun.sh."""
        as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "MASTER_ADDR": "node1"}
        arguments = [str(self.folder / "hostfile"), str(self.file)]
        return self.start("sh", "configs/launch/mpirun.sh", *arguments, **as_root, **variables)

    def find(self, pattern: str) -> list[int]:
        """Processes whose command line starts with the regular expression `pattern`."""
        return sorted(pid for pid, line in self.hosts.processes().items() if re.match(pattern, line))

    def steps(self) -> int:
        """Steps of metrics.jsonl so far; 0 before its header."""
        try:
            return max(self.metrics.read_text().count("\n") - 1, 0)
        except FileNotFoundError:
            return 0

    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_for_steps(self, count: int, seconds: float = 120) -> None:
        wait_until(lambda: self.steps() >= count, seconds, lambda: f"no step {count} in time: {self.said()}")

    def wait_for_end(self, seconds: float = 60) -> None:
        """Until no process is left on either host."""
        left = self.hosts.processes
        wait_until(lambda: not left(), seconds, lambda: f"processes are left: {left()}\n{self.said()}")

    def saved(self) -> int:
        """The step of the newest checkpoint, which must be the last one trained."""
        step = int(read_metrics(self.metrics)[1][-1]["step"])
        assert (self.folder / "ck" / "latest").read_text().strip() == f"global_step{step}", self.said()
        return step

    def assert_trained_as(self, references: Mapping[int, list[float]]) -> None:
        """Its losses must be those of two processes bit for bit, and those of one process to 1e-5."""
        own = losses(self.folder / "log")
        assert own == references[2], f"{len(own)} losses"
        for ours, alone in zip(own[:10], references[1][:10], strict=True):
            assert abs(ours - alone) <= 1e-5 * abs(alone)
