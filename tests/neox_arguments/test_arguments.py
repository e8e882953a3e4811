"""NeoXArgs: merging, overrides, derived values, immutability and error messages."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import NeoXArgsDeepspeedConfig

ROOT = Path(__file__).resolve().parents[2]
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)


def message(config, **options):
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict(config, **options)
    return str(error.value)


configs = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 8),
        "seq_length": st.integers(1, 512),
        "pos_emb": st.sampled_from(["rotary", "none"]),
    },
    optional={
        "train_micro_batch_size_per_gpu": st.integers(1, 16),
        "gradient_accumulation_steps": st.integers(1, 16),
        "lr": st.floats(1e-9, 1.0),
        "optimizer": st.fixed_dictionaries(
            {"type": st.sampled_from(["Adam", "adamw", "SGD"]), "params": st.just({"weight_decay": 0.01})}
        ),
        "warmup": st.floats(0, 1),
        "seed": st.integers(0, 2**31),
        "wandb_group": st.text("abc 019-_:#'\"{}", max_size=8),
        "train_data_paths": st.lists(st.text("ab/", min_size=1), min_size=1, max_size=3),
        "bf16": st.just({"enabled": True}),
        "zero_optimization": st.fixed_dictionaries({"stage": st.sampled_from([0, 1])}),
        "use_bias_in_mlp": st.booleans(),
    },
)


@given(configs, st.sampled_from(["-", "_"]), st.booleans())
@shared_fixture
def test_yaml_and_dict_give_equal_results(write, config, dash, flow):
    spelt = {key.replace("_", dash): value for key, value in config.items()}
    from_file = NeoXArgs.from_ymls([write(yaml.safe_dump(spelt, default_flow_style=flow))])
    from_dict = NeoXArgs.from_dict(config)
    assert from_file == from_dict
    assert NeoXArgs.from_dict(from_dict.to_dict()) == from_dict
    assert NeoXArgs.from_dict(from_dict.non_default()) == from_dict
    assert json.loads(json.dumps(from_dict.to_dict())) == from_dict.to_dict()
    assert copy.deepcopy(from_dict) == from_dict and pickle.loads(pickle.dumps(from_dict)) == from_dict


def test_from_ymls_keeps_the_text_of_its_files(write):
    path = write("num-layers: 2  # a comment\n")
    args = NeoXArgs.from_ymls([path])
    assert args.config_files == {"model.yml": "num-layers: 2  # a comment\n"}
    assert "config_files" not in args.to_dict() and args.replace(seed=1).config_files == args.config_files


def test_an_assignment_resolves_and_validates_again(small):
    args = NeoXArgs.from_dict(small)
    args.update_value("train_micro_batch_size_per_gpu", 8)
    args.wandb_group = "group"
    assert (args.train_batch_size, args.wandb_group, args.given["wandb_group"]) == (8, "group", "group")
    before = args.to_dict()
    with pytest.raises(ConfigError, match="num_attention_heads: 4 does not divide hidden_size 66"):
        args.hidden_size = 66
    with pytest.raises(AttributeError, match="did you mean 'hidden_size'"):
        args.hiden_size = 128
    assert args.to_dict() == before
    same = NeoXArgs.from_dict({**small, "train_micro_batch_size_per_gpu": 8, "wandb_group": "group"})
    assert args == same and args != NeoXArgs.from_dict(small)


def test_the_properties_of_gpt_neox(small, monkeypatch):
    args = NeoXArgs.from_dict({**small, "bf16": {"enabled": True}})
    assert NeoXArgs.validate_keys() and str(args.params_dtype) == "torch.bfloat16"
    assert set(args.all_config) == set(args.megatron_config) | set(args.deepspeed_runner) | set(
        NeoXArgsDeepspeedConfig.__dataclass_fields__
    )
    assert args.megatron_config["hidden_size"] == 64 and "train_batch_size" not in args.megatron_config
    assert "hostfile" in args.deepspeed_runner and "seed" not in args.deepspeed_runner
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    args.configure_distributed_args()
    args.update_value("seed", 7)
    assert (args.rank, args.local_rank, args.world_size, args.train_batch_size) == (1, 0, 2, 8)


def test_variants_are_new_objects(small):
    args = NeoXArgs.from_dict(small)
    wider = args.replace(hidden_size=128, lr=1e-2)
    assert (args.hidden_size, args.lr) == (64, 1e-3)
    assert (wider.hidden_size, wider.lr) == (128, 1e-2)
    with pytest.raises(ConfigError, match="num_attention_heads: 4 does not divide hidden_size 66"):
        args.replace(hidden_size=66)


def test_equal_values_compare_equal_in_any_spelling(small):
    args = NeoXArgs.from_dict({**small, "gas": 2, "rotary-pct": 1})
    assert args == NeoXArgs.from_dict({**small, "gradient_accumulation_steps": 2})
    assert args != args.replace(seed=5)
    assert type(args.rotary_pct) is float


# Merging


def test_same_key_in_two_files_names_both(write):
    first, second = write("num-layers: 2\nlr: 0.1\n", "a.yml"), write("\nnum_layers: 2\n", "b.yml")
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([first, second])
    assert str(error.value).startswith(f"{second}:2: key 'num_layers' is already set in {first}:1; keep")


def test_same_file_twice_is_one_message(write):
    path = write("num-layers: 2\nlr: 0.1\n")
    with pytest.raises(ConfigError, match="^[^\n]*model.yml: given twice"):
        NeoXArgs.from_ymls([path, path.removesuffix(".yml")])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("hiden-size", "did you mean 'hidden_size'?"),
        ("num_heads", "did you mean"),
        ("mlp_type", "for `llama` set activation: swiglu"),
        ("zzzzqqqq", "unknown key 'zzzzqqqq'"),
        ("Num_Layers", "did you mean 'num_layers'?"),
    ],
)
def test_unknown_key_names_file_line_and_nearest_key(write, key, hint):
    path = write(f"seed: 1\n{key}: 3\n")
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([path])
    assert str(error.value).startswith(f"{path}:2: unknown key") and hint in str(error.value)


def test_invalid_and_unknown_keys_are_listed_together(write):
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([write("1: 2\nsed: 3\nlayer: 1\n")])
    assert len(str(error.value).splitlines()) == 3


# Types


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_layers", "12", "expected an integer, got the string '12'; write 12 without quotes"),
        ("num_layers", True, "expected an integer, got the boolean True"),
        ("num_layers", 2.5, "expected an integer, got 2.5"),
        ("num_layers", [2], "expected an integer, got the list [2]"),
        ("lr", "1e-3", "expected a number, got the string '1e-3'; write 1e-3 without quotes"),
        ("lr", False, "expected a number, got the boolean False"),
        ("lr", float("inf"), "expected a number, got inf"),
        ("use_mup", 1, "expected true or false, got 1"),
        ("use_mup", "yes", "expected true or false, got the string 'yes'"),
        ("wandb_group", 7, "expected a string, got 7; put it in quotes"),
        ("optimizer", "Adam", "expected a mapping, got the string 'Adam'"),
        ("norm", "batchnorm", "or scalenorm, got the string 'batchnorm'"),
        ("coord_check_widths", [64, "x"], "expected a list of integers"),
        ("checkpoint_factor", "often", "expected an integer or a number, got the string 'often'"),
    ],
)
def test_wrong_type_names_file_line_key_and_expected_type(write, key, value, says):
    path = write(f"seed: 1\n{key}: {json.dumps(value) if value != float('inf') else '.inf'}\n")
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([path])
    assert str(error.value).startswith(f"{path}:2: {key}: ") and says in str(error.value)


def test_accepted_spellings_of_numbers_and_words(small):
    args = NeoXArgs.from_dict({**small, "warmup": 0, "norm": "RMSNorm", "launcher": "SLURM", "seed": None})
    assert (args.warmup, args.norm, args.launcher, args.seed) == (0.0, "rmsnorm", "slurm", 1234)


def test_all_problems_come_in_one_message(small):
    wrong = {"num_attention_heads": 5, "hidden_dropout": 1.5, "te_mha": True, "min_lr": 1.0}
    text = message({**small, **wrong})
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "te_mha", "hidden_dropout", "num_attention_heads", "min_lr",
    ]  # fmt: skip


# Batch sizes


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 3))
@shared_fixture
def test_any_one_batch_size_may_be_missing(small, micro, steps, ranks, missing):
    sizes = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "train_batch_size": micro * steps * ranks,
    }
    part = {key: value for i, (key, value) in enumerate(sizes.items()) if i != missing}
    model = {key: value for key, value in small.items() if key not in sizes}
    args = NeoXArgs.from_dict({**model, **part}, world_size=None if missing == 3 else ranks)
    assert {key: getattr(args, key) for key in sizes} == sizes
    assert args.world_size == ranks and args.batch_size == micro


def test_contradicting_batch_sizes_name_valid_sizes(small):
    text = message({**small, "train_batch_size": 30, "gradient_accumulation_steps": 2}, world_size=4)
    assert "use train_batch_size 32" in text
    text = message({**small, "train_batch_size": 30}, world_size=4)
    assert "use 16 or 32" in text
    assert "batch_size: 5" in message({**small, "batch_size": 5})
    assert "train_batch_size: expected a number of at least 1, got 0" in message({**small, "train_batch_size": 0})


def test_world_size_precedence(small, monkeypatch):
    small |= {"num_gpus": 2, "num_nodes": 3, "hostfile": "hosts"}
    assert NeoXArgs.from_dict(small).world_size == 6
    assert NeoXArgs.from_dict({**small, "global_num_gpus": 5}).world_size == 5
    monkeypatch.setenv("WORLD_SIZE", "7")
    assert NeoXArgs.from_dict({**small, "global_num_gpus": 5}).world_size == 7
    assert NeoXArgs.from_dict(small, world_size=8).world_size == 8


# Precision, optimizer, ZeRO


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ({}, "fp32"),
        ({"precision": "fp16"}, "fp16"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"fp16": {"enabled": True, "fp16": True, "loss_scale": 0}}, "fp16"),
        ({"fp16": {"enabled": False}}, "fp32"),
        ({"fp16": {"enabled": True, "type": "bfloat16"}}, "bfloat16"),
        ({"bf16": {"enabled": True}, "precision": "bfloat16"}, "bfloat16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bfloat16"),
    ],
)
def test_precision(small, keys, precision):
    args = NeoXArgs.from_dict({**small, **keys})
    assert args.precision == precision
    config = args.deepspeed_config
    assert [key for key in ("fp16", "bf16") if key in config] == {
        "fp32": [], "fp16": ["fp16"], "bfloat16": ["bf16"]
    }[precision]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"precision": "fp32", "fp16": {"enabled": True}}, "precision: fp32 disagrees with fp16.enabled"),
        ({"precision": "fp16", "bf16": {"enabled": True}}, "precision: fp16 disagrees with bf16.enabled"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "disagrees with bf16.enabled"),
        ({"precision": "fp16", "fp16": {"enabled": False}}, "enabled: false disagrees with precision: fp16"),
        ({"fp16": {"loss_scale": 1}}, "fp16: missing key enabled"),
        ({"fp16": {"enabled": True, "los_scale": 1}}, "fp16.los_scale: unknown key; did you mean 'loss_"),
        ({"loss_scale": 128.0}, "loss_scale: needs precision fp16, but precision is fp32"),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.type: missing"),
        ({"optimizer": {"type": "Adagrad"}}, "optimizer.type: expected adam, adamw or sgd, got the string 'Adagrad'"),
        (
            {"optimizer": {"type": "Lion", "params": {}}},
            "optimizer.type: Lion is not supported yet; use adam (AdamW) or sgd (got the string 'lion')",
        ),
        (
            {"optimizer": {"type": "Adam", "params": {"lr": "1e-3"}}},
            "optimizer.params.lr: expected a number, got the string '1e-3'; write 1e-3 without quotes",
        ),
        ({"optimizer": {"type": "Adam", "params": {"beta": 1}}}, "did you mean 'betas'?"),
        (
            {"optimizer": {"type": "Adam", "params": {"betas": [0.9]}}},
            "optimizer.params.betas: expected a list of 2 numbers from 0 to below 1, got the list [0.9]",
        ),
        ({"optimizer": {"type": "Adam", "params": {"momentum": 0.9}}}, "optimizer adam does not use it"),
        (
            {"optimizer": {"type": "Adam", "params": [1]}},
            "optimizer.params: expected a mapping, got the list [1]",
        ),
        ({"lr": 0.1}, "lr: 0.1 disagrees with optimizer.params.lr: 0.001; keep one of the two"),
        ({"optimizer_type": "sgd"}, "optimizer_type: sgd disagrees with optimizer.type: adam"),
        ({"clip_grad": 0.5, "gradient_clipping": 1.0}, "gradient_clipping: 1.0 disagrees with clip_grad"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: expected 0, 1, 2 or 3, got 4"),
        ({"zero_stage": "all"}, "zero_stage: expected 0, 1, 2 or 3, got the string 'all'"),
        ({"zero_optimization": {"stage": 1}, "zero_stage": 0}, "zero_stage: 0 disagrees with"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload: needs ZeRO stage 1 or higher, got 0"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param: needs ZeRO stage 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "offload_param.device: offload to NVMe is not supported; use device cpu (got the string 'nvme')",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}, "pipe_parallel_size": 2},
            "is not supported with a pipeline",
        ),
        ({"model_parallel_size": 0}, "model_parallel_size: expected a number of at least 1, got 0"),
        (
            {"model_parallel_size": 3},
            "3 does not divide num_attention_heads, which is 4; use model_parallel_size 1, 2 or 4",
        ),
        ({"model_parallel_size": 4, "num_kv_heads": 2}, "4 does not divide num_kv_heads, which is 2"),
        ({"model_parallel_size": 2, "padded_vocab_size": 513}, "2 does not divide padded_vocab_size, which is 513"),
        (
            {"model_parallel_size": 2, "sequence_parallel": True, "seq_length": 63},
            "2 does not divide seq_length (sequence_parallel), which is 63",
        ),
        ({"model_parallel_size": 2, "intermediate_size": 129}, "2 does not divide the inner width of the MLP"),
        ({"pipe_parallel_size": 3}, "3 stages for num_layers 2: each stage needs a layer; use at most 2 stages"),
        (
            {"pipe_parallel_size": 2, "zero_optimization": {"stage": 2}},
            "DeepSpeed's pipeline supports ZeRO stages 0 and 1, not 2",
        ),
        ({"model_parallel_size": 2, "world_size": 3}, "start a multiple of 2 processes"),
    ],
)
def test_contradictory_and_unsupported_values(small, keys, says):
    assert says in message({**small, **keys})


def test_optimizer_keys_are_resolved(small):
    args = NeoXArgs.from_dict({"optimizer": {"type": "AdamW", "params": {"lr": 1, "weight_decay": 0}}})
    assert (args.optimizer_type, args.lr, args.weight_decay) == ("adam", 1.0, 0.0)
    args = NeoXArgs.from_dict({"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}})
    assert (args.optimizer_type, args.weight_decay) == ("sgd", 0.1)
    assert NeoXArgs.from_dict({"lr": 1e-4, "clip_grad": 0.5}).gradient_clipping == 0.5


def test_require_names_what_is_missing():
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict({"hidden_size": 8}).require("lr", "hidden_size", "train_iters")
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["lr", "train_iters"]


# Shape, data, schedule


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"num_attention_heads": 5}, "5 does not divide hidden_size 64; use hidden_size 60 or 65, or 4 heads"),
        ({"num_kv_heads": 3}, "num_kv_heads: 3 does not divide num_attention_heads 4"),
        ({"rotary_pct": 0.2}, "of head dimension 16 is 3 dimensions"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type: missing"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor: missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
            "rope_scaling.factor: expected a number of at least 1",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "original_max_position_embeddings: missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 2.0}}, "only rope_type llama3"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 8}},
            "rope_type linear does not use it",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "pos_emb": "none"}, "needs pos_emb: rotary"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 2.0,
                    "original_max_position_embeddings": 8,
                    "low_freq_factor": 4.0,
                }
            },
            "expected more than low_freq_factor",
        ),
        ({"num_layers": 0}, "num_layers: expected a number of at least 1, got 0"),
        ({"max_position_embeddings": 8}, "seq_length: 32 is greater than max_position_embeddings 8"),
        ({"pos_emb": "learned"}, "max_position_embeddings: pos_emb learned needs a value; use at least 32"),
        ({"profile": True}, "profile: needs tensorboard_dir or log_dir"),
        (
            {"profile": True, "log_dir": "x", "profile_step_start": 12},
            "expected more than profile_step_start 12, got 12",
        ),
        ({"memory_profiling": True}, "memory_profiling: needs memory_profiling_path"),
        ({"opt_pos_emb_offset": 2}, "opt_pos_emb_offset: needs pos_emb: learned"),
        (
            {"pos_emb": "learned", "opt_pos_emb_offset": 2, "max_position_embeddings": 33},
            "33 rows are too few for seq_length 32 from row opt_pos_emb_offset 2 on; use at least 34",
        ),
        ({"pos_emb": "sinusoidal", "hidden_size": 33, "num_attention_heads": 3}, "sinusoidal needs an even number"),
        ({"gpt_j_tied": True}, "gpt_j_tied: needs gpt_j_residual: true"),
        ({"intermediate_size": 1, "expansion_factor": 2}, "keep one of the two"),
        ({"attention_config": [[["flash", "local"], 1]]}, "attention_config: sparse attention is not supported"),
        ({"attention_config": [[["flash"], 3]]}, "describes 3 layers, but num_layers is 2"),
        ({"attention_config": [[["flash"], "x"]]}, "number of repeats], got"),
        ({"lr_decay_iters": 5, "lr_decay_fraction": 0.5}, "keep one of the two"),
        ({"checkpoint_factor": 0.5}, "checkpoint_factor: expected a whole number of steps, got 0.5"),
        ({"checkpoint_factor": 1, "checkpoint_scale": "log"}, "checkpoint_scale log expects a number above 1, got 1"),
        ({"extra_save_iters": [1, "x"]}, "extra_save_iters: expected a list of integers of at least 0, got"),
        ({"data_path": "a", "train_data_paths": ["b"]}, "train_data_paths: data_path is also set"),
        ({"train_data_paths": ["a", "b"], "train_data_weights": [1]}, "1 weights for 2 paths"),
        (
            {"train_data_paths": ["a"], "train_data_weights": [-1]},
            "expected a list of numbers of at least 0, got the list [-1]",
        ),
        ({"train_data_paths": ["a"], "train_data_weights": [0]}, "expected at least one number above 0, got only 0"),
        ({"train_data_paths": [1]}, "train_data_paths: expected a list of strings, got the list [1]"),
        ({"train_data_weights": [1]}, "train_data_weights: needs train_data_paths"),
        ({"split": "a,b"}, "split: expected up to three shares"),
        ({"split": "0,0,0"}, "split: expected up to three shares"),
        (
            {"text_gen_type": "poem"},
            "text_gen_type: expected unconditional, input-file or interactive, got the string 'poem'",
        ),
        ({"include": "a", "exclude": "b"}, "include: exclude is also set"),
        ({"include": "a", "num_gpus": 2}, "num_gpus: include already selects"),
        ({"account": "me"}, "account: needs launcher: slurm"),
        ({"master_port": 0}, "master_port: expected a number from 1 to 65535, got 0"),
        (
            {"override_lr_scheduler": True, "use_checkpoint_lr_scheduler": True},
            "contradicts use_checkpoint_lr_scheduler",
        ),
        ({"train_epochs": 1, "train_iters": 5}, "train_epochs: contradicts train_iters"),
        ({"train_epochs": 1, "train_iters": None, "pack_impl": "unpacked"}, "train_epochs: needs pack_impl packed"),
        (
            {"train_epochs": 1, "train_iters": None, "train_data_paths": ["a", "b"], "train_data_weights": [1, 2]},
            "train_epochs: contradicts train_data_weights",
        ),
        ({"train_epochs": 0}, "train_epochs: expected a number of at least 1"),
        ({"sliding_window_width": 0}, "sliding_window_width: expected a number of at least 1, got 0"),
    ],
)
def test_keys_that_contradict_each_other(small, keys, says):
    assert says in message({**small, **keys})


def test_derived_values(small):
    args = NeoXArgs.from_dict({**small, "train_data_paths": ["a", "b"], "eval_iters": 0})
    assert (args.num_kv_heads, args.max_position_embeddings, args.train_data_weights) == (4, 32, [1.0, 1.0])
    assert (args.do_train, args.do_valid, args.do_test) == (True, False, False)
    assert args.text_gen_type == "unconditional" and not args.is_pipe_parallel
    assert args.replace(sample_input_file="x").text_gen_type == "input-file"


# muP


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"coord_check": True}, "coord_check: needs use_mup: true"),
        ({"coord_check": True, "use_mup": False}, "coord_check: needs use_mup: true"),
        ({"save_base_shapes": True}, "save_base_shapes: needs use_mup: true"),
        ({"use_mup": True, "save_base_shapes": True}, "save_base_shapes: needs base_shapes_file"),
        ({"use_mup": True}, "use_mup: needs the base model; set"),
        ({"mup_base_hidden_size": 32}, "mup_base_hidden_size: has no effect without use_mup: true"),
        ({"base_shapes_file": "b"}, "base_shapes_file: has no effect without use_mup: true"),
        (
            {"use_mup": True, "base_shapes_file": "b", "mup_depth_alpha": 0.3},
            "mup_depth_alpha: expected 0, 0.5 or 1, got 0.3",
        ),
        ({"use_mup": True, "base_shapes_file": "b", "mup_readout_zero_init": True}, "set no_weight_tying"),
        ({"use_mup": True, "mup_base_hidden_size": 33, "mup_base_num_attention_heads": 2}, "does not divide"),
        (
            {"use_mup": True, "base_shapes_file": "b", "coord_check_widths": [64]},
            "expected at least two different sizes, got [64]",
        ),
        (
            {"use_mup": True, "base_shapes_file": "b", "mup_output_temp": 0},
            "mup_output_temp: expected a number above 0, got 0",
        ),
    ],
)
def test_invalid_mup_keys(small, keys, says):
    assert says in message({**small, **keys})


def test_valid_mup_keys(small):
    NeoXArgs.from_dict({**small, "use_mup": True, "mup_base_hidden_size": 32})
    NeoXArgs.from_dict({**small, "use_mup": True, "coord_check": True})
    NeoXArgs.from_dict({**small, "use_mup": True, "save_base_shapes": True, "base_shapes_file": "shapes"})
    NeoXArgs.from_dict({**small, "use_mup": False, "mup_base_hidden_size": 32})  # an SP baseline


# Overrides


@pytest.mark.parametrize(
    ("given_keys", "override", "key", "value"),
    [
        ({}, {"lr": 0.5}, "lr", 0.5),
        ({"lr": 0.1, "optimizer": None}, {"optimizer.params.lr": 0.5, "optimizer.type": "Adam"}, "lr", 0.5),
        ({"precision": "fp32"}, {"bf16.enabled": True}, "precision", "bfloat16"),
        ({"fp16": {"enabled": True}}, {"precision": "bfloat16"}, "precision", "bfloat16"),
        ({"fp16": {"enabled": False}}, {"precision": "fp16"}, "precision", "fp16"),
        ({"precision": "fp16", "fp16": {"enabled": True}}, {"precision": "fp32"}, "precision", "fp32"),
        ({"precision": "bfloat16"}, {"fp16": {"enabled": True}}, "precision", "fp16"),
        ({"zero_stage": 0}, {"zero_optimization": {"stage": 1}}, "zero_stage", 1),
        ({"zero_optimization": {"stage": 1}}, {"zero_stage": 0}, "zero_stage", 0),
        ({"gradient_clipping": 1.0}, {"clip-grad": 0.5}, "gradient_clipping", 0.5),
        ({"lr_decay_fraction": 0.5}, {"lr_decay_iters": 7}, "lr_decay_fraction", None),
        ({}, {"optimizer.type": "SGD"}, "optimizer_type", "sgd"),
    ],
)
def test_an_override_replaces_every_key_that_sets_the_same_value(small, given_keys, override, key, value):
    args = NeoXArgs.from_dict({**small, **given_keys}, overwrite_values=override)
    assert getattr(args, key) == value
    assert getattr(NeoXArgs.from_dict({**small, **given_keys}).replace(**override), key) == value


def test_bad_overrides(small):
    assert "overwrite_values: unknown key 'lrr'" in message(small, overwrite_values={"lrr": 1})
    assert "inside a value that is not a section" in message(small, overwrite_values={"hidden_size.x": 1})
    assert "disagrees" in message(small, overwrite_values={"lr": 1, "optimizer.params.lr": 2})


# Imports and side effects


def test_reading_imports_neither_torch_nor_deepspeed_and_writes_no_files(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.dont_write_bytecode = True
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import NeoXArgsDeepspeedConfig
args = NeoXArgs.from_ymls([{str(ROOT / "configs" / "125M.yml")!r}], {{"save": "out", "log_dir": "logs"}})
args.deepspeed_config, args.replace(lr=1.0, user_script="train.py").get_deepspeed_main_args()
heavy = {{"torch", "deepspeed", "numpy", "transformers", "wandb", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_null_on_the_command_line_restores_the_default(tmp_path):
    (tmp_path / "a.yml").write_text("save: checkpoints\neval-interval: 7\n")
    args = NeoXArgs.consume_neox_args(input_args=[str(tmp_path / "a.yml"), "--save", "null", "--eval-interval=null"])
    assert args.save is None and args.eval_interval == 1000


def test_an_overlay_overrides_other_files_in_any_order(write):
    model = write("num-layers: 2\noptimizer: {type: Adam, params: {lr: 0.1, eps: 1e-6}}\n", "model.yml")
    best = write("overlay: true\noptimizer: {params: {lr: 0.2}}\nmin_lr: 0.01\n", "best.yml")
    for files in ([model, best], [best, model]):
        args = NeoXArgs.from_ymls(files)
        assert (args.num_layers, args.lr, args.min_lr) == (2, 0.2, 0.01)
    with pytest.raises(ConfigError, match="overlay: expected true or false"):
        NeoXArgs.from_ymls([model, write("overlay: 3\n", "odd.yml")])
    with pytest.raises(ConfigError, match=r"best2\.yml.*unknown key 'hiden-size'"):
        NeoXArgs.from_ymls([model, write("overlay: true\nhiden-size: 3\n", "best2.yml")])


def test_a_dotted_key_of_many_sections_is_an_error():
    key = "fp16" + ".a" * 33
    with pytest.raises(ConfigError, match=r"'fp16\.a\.a.*names more than 32 nested sections"):
        NeoXArgs.from_dict({}).replace(**{key: 1})
