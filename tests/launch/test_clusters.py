"""Launchers with Open MPI itself and with a stand-in that starts what srun would start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid

import pytest

from megatron.monitoring import read_metrics
from tests.launch.processes import marked, wait_until
from tests.training.harness import ROOT, configuration, environment, free_port, make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]

# As srun does: -n tasks with Slurm's variables, and SIGUSR1 reaches each of them.
SRUN = r"""#!/bin/bash
while [ "${1#-}" != "$1" ]; do
  case $1 in
    -n) tasks=$2; shift 2;;
    --export=*) IFS=, read -ra pairs <<< "${1#--export=ALL,}"; export "${pairs[@]}"; shift;;
    *) shift;;
  esac
done
for i in $(seq 0 $((tasks-1))); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$tasks SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=1 "$@" & pids="$pids $!"
done
trap 'kill -USR1 $pids' USR1
code=0; for pid in $pids; do while kill -0 $pid 2>/dev/null; do wait $pid; code=$?; done; done; exit $code
"""
MPI_HERE = {f"OMPI_{name}": "1" for name in ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM")}
MPI_HERE["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
HOSTFILE = ["--hostfile", "hosts", "--force-multi"]


class ClusterRun:
    """An endless run in a folder whose name has a space, with the stand-in first in PATH."""

    def __init__(self, folder, command, **variables):
        self.folder = folder / "a folder"
        self.folder.mkdir()
        (self.folder / "srun").write_text(SRUN)
        (self.folder / "srun").chmod(0o755)
        corpus = make_corpus(folder / "text_document")
        config = configuration(corpus, self.folder / "log", train_iters=100_000, eval_iters=0)
        (self.folder / "config.json").write_text(json.dumps({**config, "save": str(self.folder / "ck")}))
        (self.folder / "hosts").write_text("localhost slots=2\n")
        shutil.copy(ROOT / "train.py", self.folder / "my train.py")
        self.mark = uuid.uuid4().hex
        path = f"{self.folder}:{os.environ['PATH']}"
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(MARK=self.mark, PATH=path, **MPI_HERE, **variables),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        metrics = self.folder / "log" / "metrics.jsonl"
        wait_until(
            lambda: self.process.poll() is not None or (metrics.is_file() and metrics.read_text().count("\n") > 3),
            240,
            "no step in time",
        )
        assert self.process.poll() is None, self.output

    @property
    def output(self):
        return (self.folder / "output").read_text(errors="replace")

    def assert_one_run_that_saves(self, number):
        self.process.send_signal(number)
        assert self.process.wait(timeout=120) == 0, self.output
        wait_until(lambda: not marked(self.mark), 30, f"processes are left: {marked(self.mark)}")
        header, records = read_metrics(self.folder / "log" / "metrics.jsonl")
        assert '"world_size": 2' in json.dumps(header)
        assert (self.folder / "ck" / "latest").read_text() == f"global_step{records[-1]['step']}", self.output


def deepy(*options):
    port = ["--master-port", str(free_port())]
    return [sys.executable, str(ROOT / "deepy.py"), "my train.py", "config.json", *port, *options]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_slurm_inside_an_allocation(tmp_path, number):
    command = deepy("--launcher", "slurm", "--num-gpus", "2")
    ClusterRun(tmp_path, command, SLURM_JOB_NODELIST="localhost").assert_one_run_that_saves(number)


def require_open_mpi():
    if shutil.which("ompi_info") is None:
        pytest.skip("needs Open MPI: apt-get install openmpi-bin")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_openmpi(tmp_path, number):
    require_open_mpi()
    ClusterRun(tmp_path, deepy(*HOSTFILE, "--launcher", "openmpi")).assert_one_run_that_saves(number)


def test_mpirun_without_a_key_passes_usr1_on(tmp_path):
    require_open_mpi()
    port = ["--master-port", str(free_port())]
    command = ["mpirun", "-n", "2", sys.executable, str(ROOT / "train.py"), "config.json", *port]
    ClusterRun(tmp_path, command).assert_one_run_that_saves(signal.SIGUSR1)
