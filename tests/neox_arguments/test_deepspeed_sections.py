"""DeepSpeed's sections: declarations match DeepSpeed, and deepspeed_extra_args cannot bypass the configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import FIELDS, KEYS, section_fields, sections
from megatron.neox_arguments.keys import REFUSED, key_of

ROOT = Path(__file__).resolve().parents[2]


def problem(config):
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict(config)
    [line] = str(error.value).removeprefix("configuration: ").splitlines()
    return line


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"bf16": {"enabled": True}}, "bf16: is a top-level key; write bf16: {...} at the top level"),
        ({"fp16": {"enabled": True}}, "fp16: is a top-level key; write fp16: {...} at the top level"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization: is a top-level key; write zero_optimization: {...}"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: is a top-level key"),
        ({"train_batch_size": 8}, "train_batch_size: is a top-level key; write train_batch_size: 8 at the top level"),
        ({"gradient_clipping": 0.1}, "gradient_clipping: is a top-level key"),
        ({"lr": 1}, "lr: is a top-level key"),
        ({"elasticity": {"enabled": True}}, "elasticity: elastic training is not supported"),
        (
            {"scheduler": {"type": "WarmupLR"}},
            "scheduler: use lr_decay_style",
        ),
        ({"bfloat16": {"enabled": True}}, "bfloat16: use bf16"),
        ({"pipeline": {"stages": 2}}, "pipeline: the trainer sets it"),
        (
            {"gradient_allreduce_op": "sum"},
            "gradient_allreduce_op: gradients are averaged",
        ),
        (
            {"data_types": {"param_dtype": "bf16"}},
            "data_types.param_dtype: precision sets",
        ),
        ({"comms_loger": {}}, "comms_loger: unknown key; did you mean 'comms_logger'?"),
        ({"memory_brakdown": True}, "memory_brakdown: unknown key; did you mean 'memory_breakdown'?"),
        ({"memory_breakdown": 1}, "memory_breakdown: expected true or false, got 1"),
        ({"comms_logger": {"verbos": True}}, "comms_logger.verbos: unknown key; did you mean 'verbose'?"),
        ({"comms_logger": {"verbose": "yes"}}, "comms_logger.verbose: expected true or false, got the string 'yes'"),
        ({"comms_logger": 3}, "comms_logger: expected a mapping, got 3"),
        ({"checkpoint": {"tag_validation": "Strict"}}, "checkpoint.tag_validation: expected Ignore, Warn or Fail, got"),
        ({"checkpoint": {"writer": {"type": "mock"}}}, "checkpoint.writer: the trainer writes"),
        (
            {"timers": {"throughput": {"enable": True}}},
            "timers.throughput.enable: unknown key; did you mean 'enabled'?",
        ),
    ],
)
def test_extra_args_cannot_override_top_level_keys(small, extra, says):
    assert problem({**small, "deepspeed_extra_args": extra}).startswith(f"deepspeed_extra_args.{says}")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"flops_profiler": {"enabld": True}}, "flops_profiler.enabld: unknown key; did you mean 'enabled'?"),
        (
            {"flops_profiler": {"profile_step": 0}},
            "flops_profiler.profile_step: expected a number of at least 1, got 0",
        ),
        ({"comms_logger": {"prof_ops": [1]}}, "comms_logger.prof_ops: expected a list of strings, got the list [1]"),
        ({"checkpoint": {"tag_validatoin": "Fail"}}, "checkpoint.tag_validatoin: unknown key; did you mean 'tag_"),
        ({"checkpoint": {"load_universal": True}}, "checkpoint.load_universal: every checkpoint"),
        ({"data_types": {"grad_accum_dtyp": "fp32"}}, "data_types.grad_accum_dtyp: unknown key; did you mean 'grad_a"),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, "data_types.grad_accum_dtype: expected fp32, fp16 or bf16, got"),
        ({"torch_autocast": {"enabled": True, "dtype": "int8"}}, "torch_autocast.dtype: expected bfloat16, bf16, "),
        ({"bf16": {"enabled": 1}}, "bf16.enabled: expected true or false, got 1"),
        ({"zero_optimization": {"overlap_comm": "on"}}, "zero_optimization.overlap_comm: expected true or false, got"),
        (
            {"zero_optimization": {"reduce_bucket_size": 1.5}},
            "zero_optimization.reduce_bucket_size: expected an integer, got 1.5",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "5e8"}},
            "zero_optimization.reduce_bucket_size: expected an integer, got the string '5e8'; write 5e8 without",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"pin": 1}}},
            "zero_optimization.offload_optimizer.pin:",
        ),
    ],
)
def test_an_error_in_a_section_names_the_key(small, section, says):
    assert problem({**small, **section}).startswith(says)


def test_deepspeed_gets_an_integer_for_a_number_written_as_a_float(write, small):
    """GPT-NeoX's and DeepSpeed's users write 5e8, which YAML reads as a float."""
    section = "{stage: 1, reduce_bucket_size: 5e8, allgather_bucket_size: 2.0e+8, offload_param: {buffer_size: 1e8}}"
    path = write(f"train_batch_size: 4\nzero_optimization: {section}\nflops_profiler: {{profile_step: 5.0}}\n")
    args = NeoXArgs.from_ymls([path], {"zero_optimization.stage3_max_live_parameters": 1e9})
    zero = args.deepspeed_config["zero_optimization"]
    expected = {
        "reduce_bucket_size": 500_000_000,
        "allgather_bucket_size": 200_000_000,
        "stage3_max_live_parameters": 1_000_000_000,
    }
    assert {key: repr(zero[key]) for key in expected} == {key: repr(value) for key, value in expected.items()}
    assert repr(args.zero_optimization["offload_param"]["buffer_size"]) == "100000000"
    assert repr(args.zero_reduce_bucket_size) == "500000000" and repr(args.flops_profiler["profile_step"]) == "5"
    extra = NeoXArgs.from_dict({**small, "deepspeed_extra_args": {"flops_profiler": {"profile_step": 7.0}}})
    assert repr(extra.deepspeed_config["flops_profiler"]["profile_step"]) == "7"


def test_other_deepspeed_options_are_passed_on(small):
    extra = {"memory_breakdown": True, "timers": {"throughput": {"synchronized": False}}, "log_level": "warning"}
    config = NeoXArgs.from_dict({**small, "deepspeed_extra_args": extra}).deepspeed_config
    assert {key: config[key] for key in extra} == extra
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(config)
    assert read.memory_breakdown and read.log_level == "warning" and not read.timers_config.synchronized


def test_a_section_in_extra_args_sets_the_key_of_that_name(small):
    section = {"enabled": True, "verbose": True}
    extra = {**small, "deepspeed_extra_args": {"comms_logger": section}}
    args = NeoXArgs.from_dict(extra)
    assert args.comms_logger == section and args.deepspeed_config["comms_logger"] == section
    assert NeoXArgs.from_dict(args.to_dict()) == args == NeoXArgs.from_dict({**extra, "comms_logger": section})
    assert "disagrees with deepspeed_extra_args.comms_logger" in problem({**extra, "comms_logger": {"enabled": False}})


def deepspeed_models():
    """Map each section with a pydantic model in DeepSpeed to our declaration and that model."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "fp16": (sections.Fp16Section, DeepSpeedFP16Config),
        "bf16": (sections.Bf16Section, DeepSpeedBF16Config),
        "zero_optimization": (sections.ZeroSection, DeepSpeedZeroConfig),
        "zero_optimization.offload_optimizer": (sections.OffloadOptimizerSection, DeepSpeedZeroOffloadOptimizerConfig),
        "zero_optimization.offload_param": (sections.OffloadParamSection, DeepSpeedZeroOffloadParamConfig),
        "comms_logger": (sections.CommsLoggerSection, CommsLoggerConfig),
        "deepspeed_extra_args.timers.throughput": (sections.ThroughputTimerSection, DeepSpeedThroughputTimerConfig),
    }


def test_sections_match_deepspeed():
    """Every declared key exists in DeepSpeed's model with the same default."""
    for path, (ours, model) in deepspeed_models().items():
        compare(path, ours, model)


def compare(path, ours, model):
    theirs = {name: field for key, field in model.model_fields.items() for name in (key, field.alias) if name}
    for name, field in section_fields(path, ours).items():
        if path == "fp16" and name in ("fp16", "type"):
            continue  # GPT-NeoX's own
        assert name in theirs, name
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name not in FIELDS and name != "model_persistence_threshold":
            assert getattr(theirs[name].default, "value", theirs[name].default) == default, name


def test_every_key_of_deepspeed_is_known():
    """Every top-level key of DeepSpeed is declared as a key or for deepspeed_extra_args."""
    import inspect

    from deepspeed.runtime import config, constants

    source = inspect.getsource(config.DeepSpeedConfig._initialize_params) + inspect.getsource(config)
    names = {
        value
        for name, value in vars(constants).items()
        if isinstance(value, str) and value.islower() and f"param_dict, {name}," in source
    }
    known = {*KEYS, *section_fields("deepspeed_extra_args", sections.DeepspeedExtraSection)}
    assert len(names) > 15 and sorted(names - known) == []


def test_every_supported_value_reaches_deepspeed(small):
    """DeepSpeed accepts every section with our defaults written out."""
    from deepspeed.runtime.config import DeepSpeedConfig

    for name, key in KEYS.items():
        own = ("optimizer", "deepspeed_extra_args", "fp16", "zero_optimization", "rope_scaling")
        if key.section is None or name in own:
            continue
        written = {
            field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in dataclasses.fields(key.section)
            if key_of(field).status != REFUSED and key_of(field).section is None and field.default is not None
        }
        config = NeoXArgs.from_dict({**small, name: written}).deepspeed_config
        assert DeepSpeedConfig(config).train_batch_size == 4


@pytest.mark.parametrize("extra", [{"fp16": {"enabled": True}}, {"comms_logger": {"verbos": True}}])
def test_train_stops_with_one_error_line(small, tmp_path, extra):
    file = tmp_path / "extra.yml"
    text = json.dumps({**small, "deepspeed_extra_args": extra}, indent=1)
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    line = 1 + text[: text.index('"deepspeed_extra_args"')].count("\n")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    [error] = [row for row in done.stderr.splitlines() if "deepspeed_extra_args" in row]
    assert f"{file}:{line}: deepspeed_extra_args.{next(iter(extra))}" in error
