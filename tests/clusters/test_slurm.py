"""configs/launch/slurm.sbatch in a real Slurm of two hosts: signals, the time limit, scancel and requeue."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from tests.clusters.runs import ENDLESS, STEPS
from tests.launch.processes import wait_until
from tests.training.harness import ROOT, losses

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clusters")]

SCRIPT = ROOT / "configs" / "launch" / "slurm.sbatch"


def submit(slurm, run, *options, script=SCRIPT):
    here = (f"--chdir={ROOT}", f"--output={run.output}")
    return slurm.submit(script, str(run.file), options=(*here, *options), **run.environment())


def test_two_hosts_train_as_one_process_does(slurm, make_run, references):
    run = make_run()
    job = slurm.wait(submit(slurm, run), "COMPLETED", "FAILED")
    assert (job["JobState"], job["ExitCode"], job["NumNodes"]) == ("COMPLETED", "0:0", "2"), run.said()
    run.assert_trained_as(references)


@pytest.mark.parametrize("number", ["USR1", "TERM", "HUP", "INT"])
def test_a_signal_to_the_tasks_saves(slurm, make_run, number):
    """What `--signal=USR1@120` without B: sends."""
    run = make_run(steps=ENDLESS)
    job = submit(slurm, run)
    run.wait_for_steps(20)
    slurm.run("scancel", f"--signal={number}", str(job))
    assert slurm.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", run.said()
    assert run.saved() >= 20


def test_usr1_to_the_script_saves_and_queues_the_job_again(slurm, make_run, references):
    """What `--signal=B:USR1@120` sends."""
    run = make_run()
    job = submit(slurm, run)
    run.wait_for_steps(20)
    slurm.run("scancel", "--batch", "--signal=USR1", str(job))
    ended = slurm.wait(job, "COMPLETED", "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "0:0"), run.said()
    assert "resumed" in run.said()
    run.assert_trained_as(references)


def test_the_time_limit(slurm, make_run, references):
    """The warning before the limit comes by itself, and the job continues in its next turn."""
    run = make_run(steps=ENDLESS, lr_decay_iters=STEPS)
    job = submit(slurm, run, "--time=1", "--signal=B:USR1@1")
    wait_until(lambda: slurm.job(job)["Restarts"] == "1", 200, run.said)
    [before] = re.findall(r"stopped on request at step (\d+)", run.said())
    run.wait_for_steps(max(int(before), STEPS) + 20, seconds=200)
    assert re.search(rf"resumed from \S+ at step {before}\b", run.said())
    slurm.run("scancel", str(job))
    slurm.wait(job, "CANCELLED")
    run.wait_for_end()
    assert losses(run.folder / "log")[:STEPS] == references[2]


def test_scancel_saves(slurm, make_run):
    run = make_run(steps=ENDLESS)
    job = submit(slurm, run)
    run.wait_for_steps(20)
    slurm.run("scancel", str(job))
    assert slurm.wait(job, "CANCELLED")["Restarts"] == "0"
    run.wait_for_end()
    assert run.saved() >= 20


def test_scontrol_requeue_saves_and_continues(slurm, make_run, references):
    """What Slurm does to a job that makes room for another one."""
    run = make_run()
    job = submit(slurm, run)
    run.wait_for_steps(20)
    slurm.run("scontrol", "requeue", str(job))
    ended = slurm.wait(job, "COMPLETED", "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "0:0"), run.said()
    assert "resumed" in run.said()
    run.assert_trained_as(references)


def test_a_killed_task_fails_the_job(slurm, make_run):
    run = make_run(steps=ENDLESS)
    job = submit(slurm, run)
    run.wait_for_steps(5)
    slurm.run("scancel", "--signal=KILL", f"{job}.0")
    ended = slurm.wait(job, "FAILED", "COMPLETED")
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "137:0", run.said()


def deepy(slurm, run, *options):
    """A job whose script starts deepy.py, which starts srun."""
    script = run.folder / "job.sbatch"
    line = f'exec {sys.executable} deepy.py train.py --launcher slurm --num-gpus 1 "$@"'
    script.write_text(f"#!/bin/bash\n{line}\n")
    return submit(slurm, run, "--nodes=2", *options, script=script)


def test_deepy_with_launcher_slurm_trains_as_one_process_does(slurm, make_run, references):
    run = make_run()
    ended = slurm.wait(deepy(slurm, run), "COMPLETED", "FAILED")
    assert ended["ExitCode"] == "0:0", run.said()
    run.assert_trained_as(references)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_deepy_with_launcher_slurm(slurm, make_run, number):
    run = make_run(steps=ENDLESS)
    job = deepy(slurm, run)
    run.wait_for_steps(20)
    slurm.run("scancel", "--batch", f"--signal={number.name}", str(job))
    assert slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED")["ExitCode"] == "0:0", run.said()
    assert run.saved() >= 20


def test_scancel_of_a_job_of_deepy_saves(slurm, make_run):
    run = make_run(steps=ENDLESS)
    job = deepy(slurm, run)
    run.wait_for_steps(20)
    slurm.run("scancel", str(job))
    slurm.wait(job, "CANCELLED")
    run.wait_for_end()
    assert run.saved() >= 20


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, 0), (signal.SIGINT, None), (signal.SIGTERM, 1), (signal.SIGHUP, 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_signal_to_srun_itself(slurm, make_run, number, code):
    """srun passes SIGUSR1 on. At SIGTERM and SIGHUP it kills its tasks; at one SIGINT it prints their state.

    code: None where the run continues, 0 where it saves.
    """
    run = make_run(steps=ENDLESS, checkpoint_factor=10)
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--kill-on-bad-exit=1"]
    process = run.start(*command, "python", "-u", "train.py", str(run.file), **slurm.environment)
    run.wait_for_steps(20, seconds=300)
    [srun, *_] = run.find("srun ")
    os.kill(srun, number)
    if code is None:
        run.wait_for_steps(run.steps() + 20)
        os.kill(srun, signal.SIGUSR1)
    ended = process.wait(timeout=120)
    assert (ended == 0) == (code != 1), f"{ended}: {run.said()}"
    run.wait_for_end()
    if code == 1:
        assert "stopped on request" not in run.said() and (run.folder / "ck" / "latest").exists()
    else:
        assert run.saved() >= 20


def test_usr1_before_the_first_step_queues_the_job_again(slurm, make_run, references):
    """There is nothing to save, and the work is not lost: the job starts again."""
    run = make_run()
    job = submit(slurm, run)
    wait_until(lambda: run.find(r"\S*python\S* -u train\.py"), 120, run.said)
    assert run.steps() == 0
    slurm.run("scancel", "--batch", "--signal=USR1", str(job))
    ended = slurm.wait(job, "COMPLETED", "FAILED", seconds=400)
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "0:0"), run.said()
    run.assert_trained_as(references)
