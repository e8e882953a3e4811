"""Command lines of deepy.py, workers and DeepSpeed's launcher."""

import shlex
import sys

import pytest

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs, UsageRequested
from megatron.neox_arguments.launcher import decode, encode, launcher_hosts
from megatron.neox_arguments.ranks import launched_world_size, rank_environment, slurm_hosts
from megatron.neox_arguments.resolve import launcher_config


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
    return NeoXArgs.consume_neox_args(input_args=shlex.split(line))


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


def test_a_configuration_file_ends_a_list_unless_one_came_before(folder):
    assert deepy("train.py --eval-tasks a b configs/base.yml").eval_tasks == ["a", "b"]
    assert deepy("train.py configs/base.yml --eval-tasks a b.yaml --seed 3").eval_tasks == ["a", "b.yaml"]


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
    passed = NeoXArgs.consume_neox_args(input_args=["--local_rank=0", *line[1:], "--deepspeed"])
    direct = worker("configs/base.yml configs/local.yml --lr 2e-3 --user-script train.py")
    assert passed == direct and passed.config_files == direct.config_files
    assert passed.gradient_accumulation_steps == 8 // ranks and passed.log_dir == "run # 1"


def test_worker_without_a_launcher_has_world_size_1(folder):
    text = "configs/base.yml --gradient_accumulation_steps 4"
    assert deepy(f"train.py {text}").world_size == 2
    with pytest.raises(ConfigError, match="use train_batch_size 8,"):
        worker(text)


def test_overwrite_values_take_precedence(folder):
    args = NeoXArgs.consume_neox_args(input_args=["configs/base.yml", "--lr", "1"], overwrite_values={"lr": 2.0})
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
    ({"launcher": "mpich"}, {"launcher": "mpich", "no_ssh_check": True}),
    ({"launcher": "slurm"}, {"launcher": "slurm", "no_ssh_check": True, "master_addr": "n07"}),
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
    assert launcher_hosts(NeoXArgs.from_dict({**base, "hostfile": "gone"})) is None  # this host alone
    for needs in ({"num_nodes": 2}, {"include": "a"}, {"force_multi": True}):
        with pytest.raises(ConfigError, match="hostfile: gone: file not found"):
            launcher_hosts(NeoXArgs.from_dict({**base, "hostfile": "gone", **needs}))
    with pytest.raises(ConfigError, match="num_nodes: 2 hosts need hostfile"):
        NeoXArgs.from_dict({**base, "num_nodes": 2}).get_deepspeed_main_args()


def test_ranks_from_slurm_and_mpi():
    slurm = NeoXArgs.from_dict({"deepspeed_slurm": True}, world_size=4)
    environment = {
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]",
    }  # fmt: skip
    assert rank_environment(slurm, environment) == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500",
    }  # fmt: skip
    assert launched_world_size({"deepspeed_slurm": True}, environment) == 4
    assert launched_world_size({}, environment) is None  # no step: a batch script has these variables too
    set_by_torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert rank_environment(slurm, {**environment, **set_by_torchrun}) == {}
    mpi = NeoXArgs.from_dict({"deepspeed_mpi": True, "master_addr": "h"}, world_size=2)
    found = rank_environment(mpi, OPENMPI)
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "2", "h")
    with pytest.raises(ConfigError, match="deepspeed_mpi: none of OMPI_COMM_WORLD_RANK"):
        rank_environment(mpi, {})
    with pytest.raises(ConfigError, match="WORLD_SIZE='x' is not a number"):
        launched_world_size({}, {"WORLD_SIZE": "x"})


OPENMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2",
}  # fmt: skip
NODES = {"SLURM_STEP_NODELIST": "n[07-08]", "SLURM_JOB_NODELIST": "n[01-08]"}
NOWHERE = r"(srun|mpirun) has started 2 processes, .*set master_addr"


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({**SRUN, **NODES}, ("1", "0", "2", "n07")),
        ({**SRUN, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}, ("1", "0", "2", "10.0.0.1")),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1", **NODES}, ("1", "0", "2", "127.0.0.1")),
        ({**SRUN, **NODES, "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "8"}, ("1", "0", "2", "n07")),
        (SRUN, NOWHERE),
        ({**SRUN, **NODES, "SLURM_STEP_ID": "4294967291"}, None),  # the batch script of sbatch
        ({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, ("1", "0", "2", "127.0.0.1")),
        (OPENMPI, NOWHERE),
        ({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "b"}, ("1", "0", "2", "b")),
        (HYDRA, ("1", "1", "2", "127.0.0.1")),
        # mpirun starts its helpers through srun, whose variables every process then has
        ({**SRUN, **NODES, **HYDRA}, ("1", "1", "2", "127.0.0.1")),
        ({"WORLD_SIZE": "1"}, None),
        ({}, None),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK and LOCAL_RANK: "),
        ({"RANK": "0"}, "RANK=0 without LOCAL_RANK and WORLD_SIZE: "),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1, WORLD_SIZE=2 without LOCAL_RANK: "),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK=2, LOCAL_RANK=0: expected less than WORLD_SIZE=2"),
        ({"RANK": "-1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK='-1' is not a number"),
    ],
)
def test_ranks_are_recognised_without_a_key(environment, ranks):
    """Variables as the manuals of Slurm, Open MPI and Hydra list them."""
    if isinstance(ranks, str):
        with pytest.raises(ConfigError, match=ranks):
            rank_environment(NeoXArgs.from_dict({}, world_size=2), environment)
        return
    found = rank_environment(NeoXArgs.from_dict({}, world_size=2), environment)
    complete = {**environment, **found}
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    assert ranks is None and not found or tuple(complete[name] for name in names) == ranks
    launchers = {name: value for name, value in environment.items() if name != "WORLD_SIZE"}
    assert launched_world_size({}, launchers) == (2 if ranks else None)


def test_a_trial_is_one_process_also_as_a_task_of_srun():
    assert rank_environment(NeoXArgs.from_dict({}, world_size=1), {**SRUN, **NODES}) == {}


@pytest.mark.parametrize(
    ("content", "keys", "says"),
    [
        ("a\n", {}, r"hosts:1: expected `host slots=N` with N of at least 1, got 'a'"),
        ("# nothing\n", {}, "lists no host"),
        ("a slots=0\n", {}, "hosts:1: expected `host slots=N`"),
        ("a slots=2\n\na slots=1\n", {}, "hosts:3: host a is listed twice"),
        ("$(touch x) slots=2\n", {}, "hosts:1: expected `host slots=N`"),
        ("-oProxyCommand=x slots=2\n", {}, "hosts:1: expected `host slots=N`"),
        ("a slots=2\nb slots=2\n", {"include": "c"}, "include: host c is not in the hostfile, which has a or b"),
        ("a slots=2\nb slots=2\n", {"include": "a:2"}, "include: a:2: host a of the hostfile has slots 0 to 1"),
        ("a slots=2\nb slots=2\n", {"include": "a:0,0"}, "include: a:0: .* each once"),
        ("a slots=2\n", {"exclude": "a"}, "exclude: a: leaves no slot of the hostfile"),
        ("a slots=2\n", {"num_nodes": 2}, "num_nodes: 2, but the hostfile lists 1"),
        ("a slots=2\n", {"num_gpus": 3}, "num_gpus: 3, but host a has 2 slots"),
    ],
)
def test_hostfile_mistakes(folder, content, keys, says):
    (folder / "hosts").write_text(content)
    with pytest.raises(ConfigError, match=says):
        launcher_config(NeoXArgs.from_dict({"user_script": "train.py", "hostfile": "hosts", **keys}))


@pytest.mark.parametrize(
    ("keys", "hosts"),
    [
        ({}, {"a": (0, 1), "b": (0, 1)}),
        ({"include": "b:1"}, {"b": (1,)}),
        ({"include": "b@a:0"}, {"a": (0,), "b": (0, 1)}),
        ({"exclude": "a:0@b"}, {"a": (1,)}),
        ({"num_nodes": 1, "num_gpus": 1}, {"a": (0,)}),
    ],
)
def test_hosts_are_those_of_deepspeed(folder, keys, hosts):
    from deepspeed.launcher import runner

    config = launcher_config(NeoXArgs.from_dict({"user_script": "train.py", "hostfile": "hosts", **keys}))
    assert config.hosts == hosts
    pool = runner.parse_inclusion_exclusion(
        runner.fetch_hostfile("hosts"), keys.get("include", ""), keys.get("exclude", "")
    )
    pool = runner.apply_num_nodes_and_gpus(pool, keys.get("num_nodes", -1), keys.get("num_gpus", -1))
    assert {host: tuple(slots) for host, slots in pool.items()} == hosts


def test_slurm_takes_the_hosts_of_the_allocation(folder, monkeypatch):
    args = NeoXArgs.from_dict({"user_script": "train.py", "launcher": "slurm", "num_gpus": 2})
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ConfigError, match="launcher: slurm .* sbatch or salloc"):
        launcher_config(args)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[07-08]")
    assert launcher_config(args).hosts == {"n07": (0, 1), "n08": (0, 1)}
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="mpirun has started 4 launchers"):
        launcher_config(args)


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("gpu[03-05,9],login1", ["gpu03", "gpu04", "gpu05", "gpu9", "login1"]),
        ("a,b", ["a", "b"]),
        ("a-1", ["a-1"]),
        ("", []),
        ("n[1-2]x,m", ["n1x", "n2x", "m"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
    ],
)
def test_slurm_hosts(nodes, hosts):
    assert slurm_hosts(nodes) == hosts
