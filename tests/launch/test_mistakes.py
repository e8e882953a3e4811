"""Launch mistakes as a user meets them: one line that names the key, and a code that is not 0."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.training.harness import ROOT, configuration, environment, make_corpus

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
HOSTS = ["deepy.py", "train.py", "--hostfile", "hosts"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    corpus = make_corpus(folder / "text_document")
    (folder / "config.json").write_text(json.dumps(configuration(corpus, folder / "log", train_iters=2)))
    return folder


def run(folder, script, *options, **variables):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *options, str(folder / "config.json")],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("command", "variables", "hosts", "words"),
    [
        (["train.py"], STEP, "", ["srun has started 4", "master_addr"]),
        (["deepy.py", "train.py"], STEP, "", ["srun has started 4 launchers"]),
        (["train.py"], {"WORLD_SIZE": "2"}, "", ["WORLD_SIZE=2 without RANK"]),
        (["deepy.py", "nowhere.py"], {}, "", ["nowhere.py: script not found"]),
        (
            ["deepy.py", "train.py", "--master-addr", "$(touch x)127.0.0.1"],
            {},
            "",
            ["master_addr: expected a host name"],
        ),
        (["deepy.py", "train.py", "--launcher", "slurm"], {}, "", ["launcher: slurm", "sbatch"]),
        (HOSTS, {}, "localhost\n", ["hosts:1", "slots=N"]),
        (HOSTS, {}, "$(touch x) slots=1\n", ["hosts:1", "slots=N"]),
        ([*HOSTS, "--include", "b"], {}, "localhost slots=1\n", ["include", "b", "localhost"]),
        ([*HOSTS, "--launcher", "openmpi"], {"PATH": ""}, "a slots=1\nb slots=1\n", ["mpirun", "not installed"]),
    ],
)
def test_a_launch_mistake_is_one_line(folder, command, variables, hosts, words):
    (folder / "hosts").write_text(hosts)
    done = run(folder, *command, **variables)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (folder / "x").exists()


@pytest.mark.parametrize("script", ["deepy.py", "train.py"])
def test_a_port_in_use_is_named(folder, script):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        if script == "deepy.py":
            done = run(folder, script, "train.py", "--num-gpus", "2", "--master-port", port)
        else:  # as the first process of torchrun or srun
            ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            done = run(folder, script, **ranks)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"error: master_port: {port} cannot be used on this host" in done.stderr


def test_deepy_finds_its_script_from_elsewhere_and_a_hostfile_that_names_this_host(folder):
    (folder / "hosts").write_text(f"{socket.gethostname()} slots=4\n")
    done = run(folder, *HOSTS, "--num-gpus", "1")
    assert done.returncode == 0, done.stderr
    assert "finished at step 2" in done.stdout
