"""Open MPI's mpirun, torchrun with the c10d rendezvous, and the files for Kubernetes and SkyPilot, on two hosts."""

from __future__ import annotations

import os
import signal

import pytest
import yaml

from tests.clusters.runs import ENDLESS
from tests.clusters.test_pdsh import SIGNALS, workers_of
from tests.training.harness import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clusters")]

MPI_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


# --- configs/launch/mpirun.sh, and deepy.py with launcher: openmpi ---


def test_mpirun_trains_as_one_process_does(make_run, references):
    run = make_run()
    assert run.mpirun().wait(timeout=240) == 0, run.said()
    run.wait_for_end()
    run.assert_trained_as(references)


def test_usr1_to_mpirun_saves(make_run):
    """The one signal that mpirun passes on. At others it ends its processes, and a save is not certain."""
    run = make_run(steps=ENDLESS)
    process = run.mpirun()
    run.wait_for_steps(20)
    [mpirun] = run.find(r"mpirun ")
    os.kill(mpirun, signal.SIGUSR1)
    assert process.wait(timeout=180) == 0, run.said()
    run.wait_for_end()
    assert run.saved() >= 20


def test_deepy_with_launcher_openmpi(make_run, references):
    run = make_run()
    process = run.deepy("--launcher", "openmpi", **MPI_AS_ROOT)
    run.wait_for_steps(20)
    [deepy] = run.find(r"python deepy\.py")
    os.kill(deepy, signal.SIGTERM)
    assert process.wait(timeout=180) == 0, run.said()
    run.wait_for_end()
    assert run.saved() >= 20
    assert run.deepy("--launcher", "openmpi", **MPI_AS_ROOT).wait(timeout=240) == 0, run.said()
    run.assert_trained_as(references)


# --- torchrun ---


def torchrun(run):
    """One torchrun on each host, which find each other at node1."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29411", "--rdzv-id", "1"]
    command = ["python", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    return [run.start(*command, "train.py", str(run.file), host=host) for host in ("node1", "node2")]


def test_torchrun_trains_as_one_process_does(make_run, references):
    run = make_run()
    assert [process.wait(timeout=240) for process in torchrun(run)] == [0, 0], run.said()
    run.wait_for_end()
    run.assert_trained_as(references)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_a_worker_of_torchrun_saves_on_both_hosts(make_run, number):
    run = make_run(steps=ENDLESS)
    processes = torchrun(run)
    run.wait_for_steps(20)
    os.kill(workers_of(run, "node2")[0], number)
    assert [process.wait(timeout=120) for process in processes] == [0, 0], run.said()
    run.wait_for_end()
    assert run.saved() >= 20


def test_sigterm_to_torchrun_saves(make_run):
    """torchrun passes it to its own worker, which asks the others; its own code is not 0."""
    run = make_run(steps=ENDLESS)
    processes = torchrun(run)
    run.wait_for_steps(20)
    for pid in run.find(r"python -m torch\.distributed\.run"):
        os.kill(pid, signal.SIGTERM)
    assert all(process.wait(timeout=120) != 0 for process in processes)
    run.wait_for_end()
    assert run.saved() >= 20


# --- the files for Kubernetes and SkyPilot, with the variables that these set ---


def read(name):
    return yaml.safe_load((ROOT / "configs" / "launch" / name).read_text())


def test_the_command_of_kubernetes(make_run, references):
    run = make_run()
    job = read("kubernetes.yaml")["spec"]
    container = job["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    assert container["args"][0] == "train.py"
    common = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "node1", "PET_MASTER_PORT": "23456"}
    processes = [
        run.start(*container["command"], "train.py", str(run.file), host=host, **common, PET_NODE_RANK=str(rank))
        for rank, host in enumerate(("node1", "node2"))
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0], run.said()
    run.wait_for_end()
    run.assert_trained_as(references)


def test_the_command_of_skypilot(make_run, references):
    run = make_run()
    script = read("skypilot.yaml")["run"].replace(".venv/bin/", "").replace("/checkpoints", str(run.folder / "ck"))
    common = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "SKYPILOT_NODE_IPS": "10.77.0.1\n10.77.0.2",
        "CONFIGS": str(run.file),
    }
    processes = [
        run.start("bash", "-ec", script, host=host, **common, SKYPILOT_NODE_RANK=str(rank))
        for rank, host in enumerate(("node1", "node2"))
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0], run.said()
    run.wait_for_end()
    run.assert_trained_as(references)
