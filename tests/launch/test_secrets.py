"""Values of environment variables reach the workers, and are in no command line, output, metrics or checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from megatron.errors import ConfigError
from megatron.launch.cluster import cluster_command
from megatron.launch.variables import exported_variables
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import launcher_config
from tests.launch.processes import marked
from tests.launch.runs import Run
from tests.launch.test_training_signals import DEEPY
from tests.training.harness import make_corpus

KEY, TOKEN, LINE = "key-0123456789abcdef", "a token with 'quotes' $HOME", "from the file"
ENVIRONMENT = {"WANDB_API_KEY": KEY, "MY_TOKEN": TOKEN, "OTHER": "stays here"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a hostfile, programs of the launchers that do nothing, and an empty home."""
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    for program in ("mpirun", "srun", "pdsh", "ssh", "ompi_info"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(**keys):
    keys = {"user_script": "train.py", "hostfile": "hosts", "master_addr": "10.0.0.1", "num_gpus": 2, **keys}
    return launcher_config(NeoXArgs.from_dict(keys))


@pytest.mark.parametrize("launcher", ["openmpi", "mpich", "mvapich", "slurm", "pdsh"])
def test_a_command_line_has_names_only(folder, launcher):
    (folder / ".deepspeed_env").write_text(f"# for the workers\nFROM_FILE={LINE}\n")
    command = cluster_command(config_of(launcher=launcher, export_variables=["MY_TOKEN"]), ENVIRONMENT)
    line = " ".join(command.arguments)
    assert not [value for value in (KEY, TOKEN, LINE) if value in line]
    if launcher != "pdsh":  # which sends them through ssh: tests/clusters
        assert {"WANDB_API_KEY": KEY, "MY_TOKEN": TOKEN, "FROM_FILE": LINE}.items() <= command.environment.items()
        assert "OTHER" not in command.environment
    if launcher not in ("pdsh", "slurm"):  # srun passes all variables on
        listed = line.replace(",", " ").split()
        assert {"WANDB_API_KEY", "MY_TOKEN", "FROM_FILE"} <= set(listed) and "OTHER" not in listed


def test_which_variables_are_passed_on(folder):
    prefixes = ("PYTHONHASHSEED", "OMP_NUM_THREADS", "NCCL_DEBUG", "UCX_TLS", "MV2_X", "MLFLOW_URI", "WANDB_MODE")
    environment = {**dict.fromkeys(prefixes, "1"), "HOME": "h", "BASH_FUNC_OMP_x%%": "()", "OMP_x%%": "()"}
    assert exported_variables(config_of(), environment) == dict.fromkeys(prefixes, "1")


def test_a_listed_variable_must_be_set_and_a_bad_line_is_named_without_its_text(folder):
    with pytest.raises(ConfigError, match="export_variables: MY_TOKEN is not set"):
        exported_variables(config_of(export_variables=["MY_TOKEN"]), {})
    (folder / ".deepspeed_env").write_text(f"A=1\n{KEY}\n")
    with pytest.raises(ConfigError, match=r"\.deepspeed_env:2: expected NAME=VALUE") as error:
        exported_variables(config_of(), {})
    assert KEY not in str(error.value)


def test_the_login_of_wandb_goes_along(folder):
    (folder / "netrc").write_text(f"machine wandb.example.com login user password {KEY}\n")
    (folder / "netrc").chmod(0o600)
    here = {"NETRC": str(folder / "netrc")}
    wandb = {"use_wandb": True, "wandb_host": "https://wandb.example.com"}
    assert exported_variables(config_of(**wandb), here) == {"WANDB_API_KEY": KEY}
    assert exported_variables(config_of(use_wandb=False), here) == {}
    assert exported_variables(config_of(**wandb), {**here, "WANDB_API_KEY": "own"}) == {"WANDB_API_KEY": "own"}


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
def test_a_run_keeps_its_secrets(tmp_path):
    """Two processes with wandb, offline: what ps shows, what is printed and what is written."""
    corpus = make_corpus(tmp_path / "data" / "text_document")
    secrets = {"WANDB_API_KEY": KEY, "MY_TOKEN": TOKEN}
    variables = {**secrets, "WANDB_MODE": "offline"}
    run = Run(corpus, tmp_path, DEEPY, variables, use_wandb=True, export_variables=["MY_TOKEN"])
    lines = marked(run.mark)
    for worker in run.workers():
        environment = Path(f"/proc/{worker}/environ").read_bytes().decode().split("\0")
        assert {f"{name}={value}" for name, value in secrets.items()} <= set(environment)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 0, run.output.read_text()
    run.assert_saved()
    written = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"output", "log/metrics.jsonl"} <= written.keys() and any(name.endswith(".wandb") for name in written)
    assert any("train.py" in line for line in lines.values()) and any("wandb" in line for line in lines.values())
    for value in secrets.values():
        assert not [line for line in lines.values() if value in line]
        assert not [name for name, content in written.items() if value.encode() in content]
