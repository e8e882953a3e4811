"""The configuration files of this repository, and the configuration for DeepSpeed."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron.errors import ConfigError
from megatron.model.mlp import PLAIN
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import FIELDS, KEYS
from megatron.neox_arguments.keys import REFUSED
from megatron.neox_arguments.resolve.model import model_config
from megatron.neox_arguments.transfer import FREE
from megatron.neox_arguments.yaml_loader import load_config
from muneox.development.compare_gpt_neox import DEPARTURES, combination, compare, configuration_files, differing

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "configs" / "local_setup.yml"
OVERLAYS = {"local_setup_wandb.yml", "slurm_local.yml"}  # used instead of local_setup.yml
SPACES = {"space.yml", "space_pairwise.yml"}  # search spaces, not configurations
GPT_NEOX_KEYS = {
    row["key"] for row in csv.DictReader((Path(__file__).parent / "gpt_neox_keys.csv").open(encoding="utf-8"))
}
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yml") if path != LOCAL and path.name not in SPACES)


MODELS = [path for path in FILES if path.name not in OVERLAYS]


@pytest.mark.parametrize("path", MODELS, ids=[str(path.relative_to(ROOT / "configs")) for path in MODELS])
def test_every_configuration_parses_with_the_local_setup(path):
    values = {key.replace("-", "_"): value for key, value in load_config(path).values.items()}
    local = {key.replace("-", "_"): value for key, value in load_config(LOCAL).values.items()}
    assert local.pop("overlay") is True
    args = NeoXArgs.from_ymls([path, LOCAL])
    for key, value in {**values, **local}.items():
        if key not in ("optimizer", "fp16", "bf16", "zero_optimization"):
            assert getattr(args, key) == value


def test_reference_is_up_to_date():
    tool = ROOT / "tools" / "argument_reference.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_reference_has_every_key():
    text = (ROOT / "configs" / "neox_arguments.md").read_text(encoding="utf-8")
    top, sections = text.split("\n## Sections\n")
    keys = re.findall(r"^\| `([a-z0-9-]+)` \|", top, re.MULTILINE)
    assert sorted(keys) == sorted(name.replace("_", "-") for name in NeoXArgs.__dataclass_fields__)
    for name in ("betas", "offload_optimizer", "grad_accum_dtype", "memory_breakdown", "stage", "min_loss_scale"):
        assert sections.count(f"\n| `{name}` |") == 1
    assert re.search(r"^\| `rotary-pct` \| float \| `1.0` \| a number from 0 to 1 \| must match \|", top, re.MULTILINE)
    assert re.search(r"^\| `lr-decay-iters` .* \| compared together with other keys \|", top, re.MULTILINE)
    assert re.search(r"^\| `save` \| str \|  \|  \|  \|", top, re.MULTILINE)


# In the style of GPT-NeoX's published files: flow style, comments, trailing commas, Python's True.
NEOX_STYLE = """
# a model
{
   "pipe_parallel_size": 0,
   "model_parallel_size": 1,
   "num_layers": 4,   # layers
   "hidden-size": 128,
   "num-attention-heads": 4,
   "seq-length": 64,
   "max-position-embeddings": 64,
   "pos-emb": "rotary",
   "rotary-pct": 0.25,
   "no-weight-tying": true,
   "gpt-j-residual": true,
   "output_layer_parallelism": "column",
   "attention-config": [[["flash"], 4]],
   "scaled-upper-triang-masked-softmax-fusion": true,
   "bias-gelu-fusion": true,
   "optimizer": {
     "type": "Adam",
     "params": {
       "lr": 0.0006,
       "betas": [0.9, 0.95],
       "eps": 1.0e-8,
     }
   },
   "min_lr": 6e-5,
   "zero_optimization": {
    "stage": 1,
    "allgather_partitions": True,
    "allgather_bucket_size": 500000000,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500000000,
    "contiguous_gradients": True,
    "cpu_offload": False
  },
   "train_micro_batch_size_per_gpu": 4,
   "gas": 1,
   "data-impl": "mmap",
   "split": "995,4,1",
   "partition-activations": true,
   "synchronize-each-layer": true,
   "weight-decay": 0,
   "hidden-dropout": 0,
   "fp16": {
     "fp16": true,
     "enabled": true,
     "loss_scale": 0,
     "loss_scale_window": 500,
     "initial_scale_power": 12,
     "hysteresis": 3,
     "min_loss_scale": 1
   },
   "save-interval": 500,
   "wall_clock_breakdown": true,
   "tokenizer-type": "HFTokenizer",
   "deepspeed_extra_args": {
    "comms_logger": {"enabled": true, "verbose": true, "prof_all": true, "debug": false},
  }
}
"""


@pytest.fixture
def neox_style(write):
    return NeoXArgs.from_ymls([write(NEOX_STYLE)])


def test_file_in_the_style_of_gpt_neox(neox_style):
    args = neox_style
    assert (args.precision, args.zero_stage, args.lr, args.weight_decay) == ("fp16", 1, 6e-4, 0.0)
    assert (args.checkpoint_factor, args.gradient_accumulation_steps, args.train_batch_size) == (500, 1, 4)
    assert (args.loss_scale, args.dynamic_loss_scale, args.hysteresis) == (None, True, 3)
    assert {notice.split(":")[0] for notice in args.notices()} == {
        "attention_config", "scaled_upper_triang_masked_softmax_fusion", "data_impl",
        "partition_activations", "synchronize_each_layer",
    }  # fmt: skip


@pytest.mark.parametrize("precision", [None, "fp32", "bfloat16"])
def test_deepspeed_accepts_its_configuration(neox_style, precision):
    from deepspeed.runtime.config import DeepSpeedConfig

    args = neox_style.replace(precision=precision) if precision else neox_style
    config = args.deepspeed_config
    assert not {"optimizer", "scheduler"} & set(config) and config["zero_allow_untested_optimizer"] is True
    read = DeepSpeedConfig(config)
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu) == (4, 4)
    assert (read.zero_config.stage, read.gradient_clipping) == (1, 1.0)
    assert read.zero_config.overlap_comm is True
    assert read.float16_config.enabled == (args.precision == "fp16")
    assert read.bfloat16_config.enabled == (args.precision == "bfloat16")
    assert read.comms_config.comms_logger_enabled and read.wall_clock_breakdown
    if args.precision == "fp16":
        scaling = read.float16_config
        assert (scaling.loss_scale, scaling.loss_scale_window, scaling.hysteresis) == (0, 500, 3)
        assert scaling.initial_scale_power == 12


# What GPT-NeoX's own code derives from its files with 64 processes, without the fields that have their defaults.
# Made by `python tools/compare_gpt_neox.py CHECKOUT --record` from commit ea7aefd.
DERIVED = json.loads((Path(__file__).parent / "gpt_neox_derived.json").read_text(encoding="utf-8"))
SHIPPED = [
    name
    for name in DERIVED
    if name.startswith("configs/") and all((ROOT / file).is_file() for file in combination(name))
]
# Keys that do not change what a step computes, but which steps are computed, evaluated and saved.
CADENCE = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "seed", "num_workers",
    "eval_interval", "eval_iters", "checkpoint_factor", "checkpoint_scale", "extra_save_iters", "finetune",
    "override_lr_scheduler", "log_interval", "keep_last_n_checkpoints",
    "model_parallel_size", "pipe_parallel_size", "make_vocab_size_divisible_by", "zero_stage",
    "checkpoint_activations", "checkpoint_num_layers", "text_gen_type", "maximum_tokens", "temperature", "num_samples",
    "global_num_gpus", "launcher", "deepspeed_slurm", "comment", "use_wandb", "wandb_project",
}  # fmt: skip
# The data and tokenizer files of somebody's machine.
PLACES = {
    "data_path", "vocab_file", "merge_file",
    *(f"{part}_data_{what}" for part in ("train", "valid", "test") for what in ("paths", "weights")),
}  # fmt: skip
# Intended differences from GPT-NeoX's files: values of the published models, which the first line of each file states.
PUBLISHED: dict[str, dict[str, object]] = {
    **{
        f"configs/llama2/{name}.yml": {"use_bias_in_mlp": False}
        for name in ("7B", "13B", "70B", "codellama_7B", "codellama_34B")
    },
    "configs/mistral/7B.yml": {"use_bias_in_mlp": False, "intermediate_size": 43008, "mlp_multiple_of": 256},
    "configs/pythia/1B.yml": {"precision": "bfloat16"},
}
PUBLISHED["configs/llama2/70B.yml"]["rotary_emb_base"] = 10000
PUBLISHED["configs/llama2/codellama_7B.yml"]["intermediate_size"] = 33024  # 11008 by GPT-NeoX's formula
PUBLISHED["configs/llama2/codellama_34B.yml"]["intermediate_size"] = 66048  # 22016
LOCAL_TOKENIZER = {"configs/local_setup.yml", "configs/local_setup_wandb.yml", "configs/slurm_local.yml"}


def first_line_of(name):
    return (ROOT / name).read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_with_gpt_neox_name_trains_the_same_run(name):
    """Every key that affects the trained model equals what GPT-NeoX derives from its file of the same name."""
    files = combination(name)
    args = NeoXArgs.from_ymls([ROOT / file for file in files], {"global_num_gpus": 64})
    checked = {key for key, facts in KEYS.items() if facts.transfer is not FREE} | CADENCE
    checked -= PLACES | DEPARTURES.keys() - {"optimizer_type"}
    if LOCAL_TOKENIZER & set(files):
        checked -= {"tokenizer_type"}
    published = PUBLISHED.get(name, {})
    differing = {}
    for key in checked & GPT_NEOX_KEYS:
        theirs = DERIVED[name].get(key, FIELDS[key].default)
        if key == "sliding_window_width" and getattr(args, key) is None:
            assert "without its sliding window" in first_line_of(name) or theirs is None
            continue
        expected = published.get(key, theirs.lower() if key == "optimizer_type" else theirs)
        if getattr(args, key) != expected:
            differing[key] = (getattr(args, key), expected)
    assert differing == {}
    for key in ("betas", "eps"):
        ours, theirs = args.optimizer["params"], DERIVED[name]["optimizer"]["params"]
        assert ours.get(key) == theirs.get(key)
    if published:
        assert "GPT-NeoX" in first_line_of(name)


def test_files_that_gpt_neox_refuses_state_their_differences():
    """Its llemma files have keys that it removed. The values of the files here follow from them."""
    small, large = (NeoXArgs.from_ymls([ROOT / f"configs/llemma/{size}.yml"]) for size in ("7B", "34B"))
    assert (small.min_lr, small.warmup) == (3.3e-6, 0.0104)  # decay_lr_to 0.033 and warmup_iters 500
    assert (large.lr, large.min_lr, large.warmup, large.train_iters) == (5e-5, 1.65e-6, 0.042, 12000)
    assert (small.intermediate_size, large.intermediate_size) == (33024, 66048)
    assert not small.use_bias_in_mlp and not large.use_bias_in_mlp
    for size in ("7B", "34B"):
        assert "Unlike GPT-NeoX's file: no MLP biases" in first_line_of(f"configs/llemma/{size}.yml")


def test_the_record_covers_the_shipped_files():
    own = {"configs/mup/base.yml", "configs/mup/target.yml", "configs/mup/demo.yml"}
    refused_there = {"configs/llemma/7B.yml", "configs/llemma/34B.yml"}
    assert {str(path.relative_to(ROOT)) for path in [*FILES, LOCAL]} - own - refused_there == set(SHIPPED)
    assert len(DERIVED) == 68 and len(SHIPPED) >= 40
    for name in ("local_setup", "local_setup_wandb", "slurm_local"):
        assert "nlike GPT-NeoX's file it names the corpus" in first_line_of(f"configs/{name}.yml") or (
            "nlike GPT-NeoX's file, it names the corpus" in first_line_of(f"configs/{name}.yml")
        )


# Fields that both sides derive from others, so that a resolved configuration does not contain them.
_DERIVED_ONLY = {"is_pipe_parallel", "world_size", "dynamic_loss_scale", "batch_size", "clip_grad", "sparsity_config"}


@pytest.mark.parametrize("name", DERIVED)
def test_a_resolved_configuration_of_gpt_neox_gives_equal_fields(name):
    """What its launcher passes to its workers is refused here for a feature, or gives the same value in every field."""
    theirs = {key: value for key, value in DERIVED[name].items() if key not in _DERIVED_ONLY}
    if set(theirs.get("deepspeed_extra_args") or {}) == {"bf16"}:  # added by GPT-NeoX to its own configuration
        del theirs["deepspeed_extra_args"]
    if name == "configs/pythia/1B.yml":
        theirs["precision"] = "bfloat16"
    layers = {"rwkv": "rwkv", "mamba": "mamba", "gmlp": "gmlp", "sparse": "sparse"}
    if any(word in name for word in layers):
        return  # refused by attention_config, which the record omits
    try:
        ours = NeoXArgs.from_dict(theirs)
    except ConfigError as error:
        key = str(error).removeprefix("configuration: ").split(":")[0].split(".")[0]
        assert KEYS[key].status == REFUSED or KEYS[key].refuse, str(error)
        return
    full = {key: DERIVED[name].get(key, FIELDS[key].default) for key in GPT_NEOX_KEYS}
    full |= {"precision": theirs["precision"]} if name == "configs/pythia/1B.yml" else {}
    assert differing(name, full, ours) == {}


def test_the_comparison_reports_what_differs(write, capsys):
    path = Path(write('{"hidden_size": 64, "num_layers": 2, "train_micro_batch_size_per_gpu": 4}', "configs.yml"))
    checkout = path.parent
    (checkout / "configs").mkdir()
    path.rename(checkout / "configs" / "a.yml")
    (checkout / "configs" / "b.yml").write_text('{"te_mha": true}')
    theirs = {"hidden_size": 64, "num_layers": 3, "world_size": None, "train_batch_size": 256}
    lines, wrong = compare(checkout, {"configs/a.yml": theirs, "configs/b.yml": "ValueError: no lr"})
    assert wrong == 1
    assert lines[0] == "differs       configs/a.yml: num_layers: 3 in GPT-NeoX, 2 here"
    assert lines[1].startswith("refused here  configs/b.yml: configs/b.yml:1: te_mha: Transformer Engine")
    assert lines[2] == "2 configurations: 1 load in GPT-NeoX, 1 here; 1 fields differ"
    with pytest.raises(ConfigError, match="expected a checkout of GPT-NeoX"):
        configuration_files(checkout / "configs")


def test_published_shapes():
    """Rows of GPT-NeoX's published models: layers, hidden size, heads, sequence length."""
    shapes = csv.reader(
        """125M,12,768,12,2048
1-3B,24,2048,16,2048
20B,44,6144,64,2048
pythia/70M,6,512,8,2048
pythia/6-9B,32,4096,32,2048
llama/65B,80,8192,64,2048
llama2/70B,80,8192,64,4096
mistral/7B,32,4096,32,8192""".splitlines()
    )
    for name, *numbers in shapes:
        args = NeoXArgs.from_ymls(
            [ROOT / "configs" / f"{name}.yml"], {"model_parallel_size": 1, "pipe_parallel_size": 1}
        )
        found = (args.num_layers, args.hidden_size, args.num_attention_heads, args.seq_length)
        assert found == tuple(map(int, numbers))


@pytest.mark.parametrize(("activation", "trained"), [("gelu", "gelu_tanh"), ("geglu", "geglu"), ("relu", "relu")])
def test_bias_gelu_fusion_is_the_function_of_gpt_neox_kernel(activation, trained):
    """GPT-NeoX's kernel computes x / 2 (1 + tanh(sqrt(2 / pi) x (1 + 0.044715 x^2))), and only of activation gelu."""
    sizes = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 16, "pos_emb": "rotary"}
    args = NeoXArgs.from_dict({**sizes, "activation": activation, "bias_gelu_fusion": True})
    assert model_config(args).architecture.activation == trained
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    kernel = x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * x * (1 + 0.044715 * x**2)))
    torch.testing.assert_close(PLAIN["gelu_tanh"](x), kernel)
    assert (PLAIN["gelu"](x) - kernel).abs().max() > 1e-4
