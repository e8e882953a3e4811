"""Command lines of deepy.py, workers and DeepSpeed's launcher."""

import shlex
import sys

import pytest

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs, UsageRequested
from megatron.neox_arguments.launcher import (
    decode,
    encode,
    first_slurm_host,
    launched_world_size,
    rank_environment,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a script, a model and a local setup."""
    (tmp_path / "train.py").write_text("")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yml").write_text(
        '{"num-layers": 2, "hidden-size": 64, "num-attention-heads": 4, "seq-length": 8,\n'
        ' "pos-emb": "rotary", "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},\n'
        ' "train_batch_size": 16, "train_micro_batch_size_per_gpu": 2}\n'
    )
    (tmp_path / "configs" / "local.yml").write_text("data-path: some/data\nlog-dir: 'run # 1'\n")
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def deepy(line):
    return NeoXArgs.consume_deepy_args(shlex.split(line))


def worker(line):
    return NeoXArgs.consume_neox_args(shlex.split(line))


def test_files_folder_and_script(folder):
    args = deepy("train.py -d configs base local")
    assert (args.user_script, args.num_layers, args.data_path) == ("train.py", 2, "some/data")
    assert deepy("configs/base.yml --conf_dir=.") == deepy("train.py configs/base.yml")
    with pytest.raises(ConfigError, match="nope.py: script not found"):
        deepy("nope.py configs/base.yml")
    with pytest.raises(ConfigError, match="expected at least one configuration file"):
        deepy("train.py")


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("--lr 3e-4", "lr", 3e-4),
        ("--lr=3e-4", "lr", 3e-4),
        ("--optimizer.params.lr=2", "lr", 2.0),
        ("--num-layers 3", "num_layers", 3),
        ("--train-iters 1e4", "train_iters", 10000),
        ("--checkpoint_activations --seed 5", "checkpoint_activations", True),
        ("--checkpoint-activations false", "checkpoint_activations", False),
        ("--wandb_run_name 12", "wandb_run_name", "12"),
        ("--wandb-group=a=b", "wandb_group", "a=b"),
        ("--use_wandb configs/local.yml", "use_wandb", True),
        ("--mup_output_temp -1", "mup_output_temp", None),
        ("--coord_check_widths '[64, 128]' --use_mup no", "coord_check_widths", [64, 128]),
        ("--split 9,1,0", "split", "9,1,0"),
        ("--norm RMSnorm", "norm", "rmsnorm"),
        ("--bf16.enabled true", "precision", "bfloat16"),
        ("-i prompts.txt", "sample_input_file", "prompts.txt"),
        ("-o out.txt", "sample_output_file", "out.txt"),
        ("-H hosts", "hostfile", "hosts"),
        ("--gas 2 --train_batch_size 4", "gradient_accumulation_steps", 2),
        ("--checkpoint_factor 1.5 --checkpoint-scale log", "checkpoint_factor", 1.5),
    ],
)
def test_overrides(folder, line, key, value):
    if value is None:
        with pytest.raises(ConfigError, match=f"command line: {key}"):
            deepy(f"configs/base.yml {line}")
        return
    for args in (deepy(f"{line} configs/base.yml"), deepy(f"configs/base.yml {line}")):
        assert getattr(args, key) == value
    assert getattr(worker(f"configs/base.yml {line}"), key) == value


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lrr 1", "command line: unknown key 'lrr'; did you mean 'lr'?"),
        ("-x 1", "command line: unknown key '-x'"),
        ("--lr", "command line: --lr: expected a value"),
        ("--lr --seed 1", "command line: --lr: expected a value"),
        ("--lr 1 --lr 2", "command line: --lr is given twice"),
        ("--use_mup=maybe", "command line: --use_mup: expected true or false"),
        ("--num_layers x", "command line: num_layers: expected an integer"),
        ("--train-iters 1.5", "command line: train_iters: expected an integer, got 1.5"),
        ("--optimizer.params.betas 3", "command line: optimizer.params.betas: expected a list of numbers"),
        ("other.yml", "other.yml: configuration file not found"),
    ],
)
def test_bad_command_lines(folder, line, says):
    for parse in (deepy, worker):
        with pytest.raises(ConfigError) as error:
            parse(f"configs/base.yml {line}")
        assert str(error.value).startswith(says) and error.value.exit_code == 2


def test_help_exits_with_code_0(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/deepy.py"])
    with pytest.raises(UsageRequested, match="usage: deepy.py") as usage:
        deepy("--help")
    assert usage.value.exit_code == 0


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_worker_resolves_the_configuration_of_deepy_with_its_world_size(folder, monkeypatch, ranks):
    line = deepy("train.py configs/base.yml configs/local.yml --lr 2e-3").get_deepspeed_main_args()
    assert line[0] == "train.py"
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    passed = NeoXArgs.consume_neox_args(["--local_rank=0", *line[1:], "--deepspeed"])
    direct = worker("configs/base.yml configs/local.yml --lr 2e-3 --user-script train.py")
    assert passed == direct and passed.config_files == direct.config_files
    assert passed.gradient_accumulation_steps == 8 // ranks and passed.log_dir == "run # 1"


def test_worker_without_a_launcher_has_world_size_1(folder):
    text = "configs/base.yml --gradient_accumulation_steps 4"
    assert deepy(f"train.py {text}").world_size == 2
    with pytest.raises(ConfigError, match="use train_batch_size 8,"):
        worker(text)


def test_overwrite_values_take_precedence(folder):
    args = NeoXArgs.consume_neox_args(["configs/base.yml", "--lr", "1"], overwrite_values={"lr": 2.0})
    assert args.lr == 2.0


def test_encoded_configuration(tmp_path):
    config = {"wandb_group": "ä\n\"'$`", "lr": 1e-5}
    text = encode(config)
    assert text == shlex.quote(text) and decode(text) == config
    (tmp_path / "c.json").write_text('{"lr": 1}')
    assert decode(str(tmp_path / "c.json")) == {"lr": 1}
    for bad in ("%%%", encode(config)[:-5], encode([1])):
        with pytest.raises(ConfigError, match="--megatron_config"):
            decode(bad)


RUNNER_CASES = [
    ({}, {"launcher": "pdsh", "hostfile": "/job/hostfile", "num_gpus": -1}),
    ({"num_gpus": 2}, {"num_gpus": 2}),
    ({"hostfile": "hosts", "num_nodes": 2, "num_gpus": 2}, {"hostfile": "hosts", "num_nodes": 2}),
    ({"hostfile": "hosts", "include": "a@b:0,1"}, {"include": "a@b:0,1"}),
    ({"hostfile": "hosts", "exclude": "b:1"}, {"exclude": "b:1"}),
    ({"master_addr": "10.0.0.1", "master_port": 1234}, {"master_addr": "10.0.0.1", "master_port": 1234}),
    ({"launcher": "OpenMPI", "deepspeed_mpi": True}, {"launcher": "openmpi"}),
    ({"force_multi": True, "no_ssh_check": True}, {"force_multi": True, "no_ssh_check": True}),
    (
        {"launcher": "slurm", "comment": "two words", "account": "me"},
        {"launcher": "slurm", "launcher_args": "'--comment=two words' --account=me"},
    ),
    ({"deepspeed_slurm": True}, {"launcher": "slurm", "no_ssh_check": True, "master_addr": "n07"}),
]


@pytest.mark.parametrize(("keys", "expected"), RUNNER_CASES)
def test_deepspeed_launcher_understands_its_arguments(folder, monkeypatch, keys, expected):
    from deepspeed.launcher.runner import parse_args

    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[07-09,12]")
    args = NeoXArgs.from_dict({"lr": 1e-3, "user_script": "train.py", **keys})
    parsed = parse_args(args.get_deepspeed_main_args())
    assert {key: getattr(parsed, key) for key in expected} == expected
    assert parsed.user_script == "train.py"
    assert parsed.user_args[::2] == ["--deepspeed_config", "--megatron_config"]
    assert decode(parsed.user_args[3]) == {"lr": 1e-3, "user_script": "train.py", **expected_spelling(keys)}


def expected_spelling(keys):
    return {key: value.lower() if key == "launcher" else value for key, value in keys.items()}


def test_launcher_needs_its_hosts(folder):
    base = {"user_script": "train.py"}
    with pytest.raises(ConfigError, match="hostfile: gone: file not found"):
        NeoXArgs.from_dict({**base, "hostfile": "gone"}).get_deepspeed_main_args()
    with pytest.raises(ConfigError, match="num_nodes: 2 hosts need hostfile"):
        NeoXArgs.from_dict({**base, "num_nodes": 2}).get_deepspeed_main_args()


def test_ranks_from_slurm_and_mpi():
    slurm = NeoXArgs.from_dict({"deepspeed_slurm": True})
    environment = {
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]",
    }  # fmt: skip
    assert rank_environment(slurm, environment) == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500",
    }  # fmt: skip
    assert launched_world_size({"deepspeed_slurm": True}, environment) == 4
    assert launched_world_size({}, environment) is None
    assert rank_environment(slurm, {"RANK": "0"}) == {}
    mpi = NeoXArgs.from_dict({"deepspeed_mpi": True, "master_addr": "h"})
    names = ("RANK", "LOCAL_RANK", "SIZE")
    found = rank_environment(mpi, {f"OMPI_COMM_WORLD_{name}": "1" for name in names})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "1", "h")
    with pytest.raises(ConfigError, match="deepspeed_mpi: none of OMPI_COMM_WORLD_RANK"):
        rank_environment(mpi, {})
    with pytest.raises(ConfigError, match="WORLD_SIZE='x' is not a number"):
        launched_world_size({}, {"WORLD_SIZE": "x"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-07,9],login1", "gpu03"), ("a,b", "a"), ("a-1", "a-1"), ("", None), ("n[1-2]x,m", "n1x")],
)
def test_first_slurm_host(nodes, host):
    assert first_slurm_host(nodes) == host
