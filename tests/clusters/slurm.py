"""Slurm on the two hosts: munged and slurmd on both, slurmctld on node1."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.clusters.hosts import ADDRESSES, Hosts
from tests.launch.processes import wait_until

# A job that is queued again waits until its credentials have expired: 120 s unless cred_expire says less.
_CONFIG = """\
ClusterName=test
SlurmctldHost=node1(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
MpiDefault=none
KillWait=30
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName=node1 NodeAddr=10.77.0.1 CPUs=8 Gres=gpu:8
NodeName=node2 NodeAddr=10.77.0.2 CPUs=8 Gres=gpu:8
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Commands of Slurm, given on node1."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        for name in ("state", "node1", "node2"):
            (folder / name).mkdir(parents=True)
        (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder))
        for gpu in range(8):
            (folder / f"gpu{gpu}").touch()  # files in place of devices: a run on CPUs asks for them and uses none
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o600)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        for name in ADDRESSES:
            munged = [f"--key-file={folder}/munge.key", f"--log-file={folder}/munged.{name}.log", "--force"]
            hosts.run(name, ["munged", *munged, f"--seed-file={folder}/seed.{name}"])
        self.run("slurmctld")
        for name in ADDRESSES:
            hosts.run(name, ["slurmd", "-N", name], env={**os.environ, **self.environment})
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], 30, self._logs)

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run it to its end and return what it prints."""
        return self.hosts.run("node1", command, env={**os.environ, **self.environment, **variables}, cwd=cwd)

    def submit(self, script: Path, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> int:
        """The number of the job, of two hosts with one task each, in the folder of this project."""
        size = ("--ntasks-per-node=1", "--cpus-per-task=1")
        said = self.run("sbatch", "--parsable", *size, *options, str(script), *arguments, cwd=None, **variables)
        return int(said)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says, such as JobState and ExitCode (code:signal)."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(number))))

    def wait(self, number: int, *states: str, seconds: float = 240) -> dict[str, str]:
        wait_until(
            lambda: self.job(number)["JobState"] in states, seconds, lambda: f"{states} not reached: {self.job(number)}"
        )
        return self.job(number)

    def _logs(self) -> str:
        return "".join(f"{file.name}:\n{file.read_text()}" for file in self.folder.glob("*.log"))
