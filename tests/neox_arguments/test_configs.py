"""The configuration files of this repository, and the configuration for DeepSpeed."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.yaml_loader import load_config

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "configs" / "local_setup.yml"
SPACES = {"space.yml", "space_pairwise.yml"}  # search spaces, not configurations
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yml") if path != LOCAL and path.name not in SPACES)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT / "configs")) for path in FILES])
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
        "attention_config", "scaled_upper_triang_masked_softmax_fusion", "bias_gelu_fusion", "data_impl",
        "partition_activations", "synchronize_each_layer",
    }  # fmt: skip


@pytest.mark.parametrize("precision", [None, "fp32", "bfloat16"])
def test_deepspeed_accepts_its_configuration(neox_style, precision):
    from deepspeed.runtime.config import DeepSpeedConfig

    args = neox_style.replace(precision=precision) if precision else neox_style
    config = args.deepspeed_config()
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


PUBLISHED = list(csv.DictReader((Path(__file__).parent / "gpt_neox_configs.csv").open(encoding="utf-8")))
NO_MLP_BIAS = dict.fromkeys(
    ("llama2/13B", "llama2/70B", "llama2/7B", "llama2/codellama_34B", "llama2/codellama_7B")
    + ("llemma/34B", "llemma/7B", "mistral/7B"),
    False,
)
# Intended differences from GPT-NeoX's files: values of the published models, as stated in the first lines of each file.
DEPARTURES = {
    "use_bias_in_mlp": NO_MLP_BIAS,
    "rotary_emb_base": {"llama2/70B": 10000},
    "intermediate_size": {
        "llama2/codellama_34B": 66048,  # 22016 by GPT-NeoX's formula for gated MLPs
        "llama2/codellama_7B": 33024,  # 11008
        "llemma/34B": 66048,
        "llemma/7B": 33024,
        "mistral/7B": 43008,  # 14336
    },
    "mlp_multiple_of": {"mistral/7B": 256},
    "min_lr": {"llemma/7B": 3.3e-6},  # from the removed keys decay_lr_to 0.033 and warmup_iters 500
    "warmup": {"llemma/7B": 0.0104},
}


@pytest.mark.parametrize("row", PUBLISHED, ids=[row["name"] for row in PUBLISHED])
def test_a_file_with_gpt_neox_name_has_gpt_neox_values(row):
    """Keys that affect the trained model equal those in GPT-NeoX's file of the same name. An empty cell is null."""
    name = row["name"]
    args = NeoXArgs.from_ymls([ROOT / "configs" / f"{name}.yml"])
    differing = {}
    for path, cell in list(row.items())[1:]:
        key, *inner = path.split(".")
        found = getattr(args, key)
        for part in inner:
            found = (found or {}).get(part)
        expected = json.loads(cell) if cell else None
        expected = DEPARTURES.get(path, {}).get(name, expected)
        if name == "pythia/1B" and path == "fp16.initial_scale_power":
            expected = None  # bfloat16 does not scale the loss
        if found != expected:
            differing[path] = (found, expected)
    assert differing == {}
    head = (ROOT / "configs" / f"{name}.yml").read_text(encoding="utf-8").split("\n\n")[0]
    assert ("has no biases" in head or "MLP has no biases" in head) == (name in NO_MLP_BIAS)


def test_the_table_covers_the_published_files():
    assert len(PUBLISHED) >= 30
    assert {row["name"] for row in PUBLISHED} >= {str(path.relative_to(ROOT / "configs"))[:-4] for path in FILES} - {
        "mup/base", "mup/target", "mup/demo",
    }  # fmt: skip
    for name, words in (("mistral/7B", "sliding window"), ("llama2/70B", "rotary-emb-base is 10000")):
        assert words in (ROOT / "configs" / f"{name}.yml").read_text(encoding="utf-8").split("\n\n")[0]


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
