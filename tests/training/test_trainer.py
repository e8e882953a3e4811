"""The trainer on DeepSpeed's engine: schedule and multipliers, layouts, resume, stop requests."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron.errors import CheckpointError, ConfigError, TrainingError
from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments.resolve import run_config
from megatron.training.stop import StopRequest
from megatron.training.trainer import Trainer
from tests.training.harness import (
    ROOT,
    arguments,
    configuration,
    environment,
    losses,
    train_here,
    train_processes,
)

PRECISIONS = {
    "fp32": {},
    "zero1": {"zero_optimization": {"stage": 1}},
    "bf16": {"precision": "bfloat16"},
    "bf16-zero1": {"precision": "bfloat16", "zero_optimization": {"stage": 1}},
}


def learning_rates(trainer: Trainer) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in trainer.train_module.engine.optimizer.param_groups}


class RecordingTrainer(Trainer):
    """Records, before every step, the learning rates that DeepSpeed's optimizer will use."""

    rates: list[dict[str, float]]

    def _logs(self, step):
        self.rates.append(learning_rates(self))
        return super()._logs(step)


def run_recording(config, **changes):
    from megatron.monitoring import MonitorGroup

    trainer = RecordingTrainer(run_config(arguments(config, **changes)), initialize_megatron(seed=1234))
    trainer.rates = []
    trainer.run(MonitorGroup(), StopRequest())
    return trainer.rates


@pytest.mark.parametrize("precision", ["fp32", "zero1", "bf16"])
def test_hidden_lr_is_a_quarter_of_the_embedding_lr_at_every_step(corpus, tmp_path, precision):
    """Rates in DeepSpeed's optimizer at width multiplier 4, in warmup and decay, with an interruption and a resume."""
    config = configuration(
        corpus, tmp_path, save=str(tmp_path / "ck"), load=str(tmp_path / "ck"), **PRECISIONS[precision]
    )
    before = run_recording(config, exit_interval=3)
    after = run_recording(config)
    rates = [r for r in (*before, *after)]
    assert len({r["input"] for r in rates}) > 4  # the schedule changes the rate
    for rate in rates:
        assert rate["block.hidden.r4"] == rate["input"] / 4
        assert rate["output"] == rate["block.vector"] == rate["input"]


def test_use_mup_at_base_width_equals_sp_bit_for_bit(corpus, tmp_path):
    base = {"mup_base_hidden_size": 64, "mup_base_num_attention_heads": 4}
    train_here(configuration(corpus, tmp_path / "mup", **base))
    train_here(configuration(corpus, tmp_path / "sp", use_mup=False))
    assert losses(tmp_path / "mup") == losses(tmp_path / "sp")
    train_here(configuration(corpus, tmp_path / "wide"))
    assert losses(tmp_path / "wide") != losses(tmp_path / "sp")  # at four times the base width muP differs


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_resume_equals_the_uninterrupted_run_exactly(corpus, tmp_path, precision):
    settings = {**PRECISIONS[precision], "hidden_dropout": 0.1, "gradient_accumulation_steps": 2}
    train_here(configuration(corpus, tmp_path / "whole", **settings))
    parts = configuration(corpus, tmp_path / "parts", save=str(tmp_path / "ck"), load=str(tmp_path / "ck"), **settings)
    assert train_here(parts, exit_interval=3).interrupted
    assert train_here(parts).step == 8
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_two_processes_give_the_losses_of_one(corpus, tmp_path, stage):
    zero = {"zero_optimization": {"stage": stage}}
    train_here(configuration(corpus, tmp_path / "one", **zero))
    train_processes(2, configuration(corpus, tmp_path / "two", **zero), tmp_path / "config")
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl")[1] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for key in ("train/loss", "valid/loss", "grad_norm"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-5), (key, a["step"])


def test_gradient_accumulation_gives_the_losses_of_one_batch(corpus, tmp_path):
    train_here(configuration(corpus, tmp_path / "one"))
    train_here(configuration(corpus, tmp_path / "four", gradient_accumulation_steps=4))
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_metrics_contain_the_facts_for_a_fit_over_a_ladder(corpus, tmp_path):
    result = train_here(configuration(corpus, tmp_path))
    header, records = read_metrics(tmp_path / "metrics.jsonl")
    hidden, vocab = 64, 512
    block = 12 * hidden**2 + 13 * hidden
    assert header["model"]["params"] == 2 * vocab * hidden + 2 * block + 2 * hidden
    assert header["model"]["params_non_embedding"] == 2 * block + 2 * hidden
    files = [Path(f"{corpus}{suffix}").read_bytes() for suffix in (".bin", ".idx")]
    hashed = hashlib.sha256(b"".join(len(content).to_bytes(8, "little") + content for content in files))
    assert header["corpus"] == {"bytes": sum(map(len, files)), "sha256": hashed.hexdigest()}
    assert header["model"]["hidden_size"] == 64 and header["mup"]["width_mult"] == 4
    assert header["config"]["train_iters"] == 8
    last = [record for record in records if "train/loss" in record][-1]
    for key in ("step", "tokens", "train/loss", "valid/loss", "lr", "grad_norm", "tokens_per_second"):
        assert isinstance(last[key], int | float), key
    assert last["tokens"] == 8 * 4 * 16
    assert result.valid_loss == last["valid/loss"] and result.test_loss is not None


def test_evaluation_reads_the_same_data_every_time(corpus, tmp_path):
    trainer = Trainer(run_config(arguments(configuration(corpus, tmp_path))), initialize_megatron())
    assert trainer.evaluate("valid") == trainer.evaluate("valid")
    assert trainer.evaluate("valid") != trainer.evaluate("test")


def test_a_resume_that_would_change_mup_raises_with_a_table(corpus, tmp_path):
    config = configuration(corpus, tmp_path / "log", save=str(tmp_path / "ck"), load=str(tmp_path / "ck"))
    train_here(config, exit_interval=3)
    with pytest.raises(CheckpointError, match=r"output_temp"):
        train_here(config, mup_output_temp=2.0)
    with pytest.raises(CheckpointError, match=r"(?s)hidden_size.*16.*32"):
        train_here(config, mup_base_hidden_size=32, mup_base_num_attention_heads=2)


def test_a_loss_that_is_not_finite_raises_before_the_update(corpus, tmp_path):
    trainer = Trainer(run_config(arguments(configuration(corpus, tmp_path))), initialize_megatron())
    with torch.no_grad():
        trainer.train_module.model.readout.weight[0, 0] = math.nan
    before = {name: p.clone() for name, p in trainer.train_module.model.named_parameters()}
    from megatron.monitoring import MonitorGroup

    with pytest.raises(TrainingError, match="at step 1"):
        trainer.run(MonitorGroup(), StopRequest())
    for name, parameter in trainer.train_module.model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_exits_with_0(corpus, tmp_path, number):
    config = configuration(corpus, tmp_path / "log", train_iters=100_000, save=str(tmp_path / "ck"), eval_iters=0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), str(tmp_path / "config.json")],
        env=environment(),
        stdout=subprocess.PIPE,
    )
    metrics = tmp_path / "log" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.1)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    step = read_metrics(metrics)[1][-1]["step"]
    assert (tmp_path / "ck" / "latest").read_text().strip() == f"global_step{step}"
    assert "stopped on request" in output


def test_do_train_false_only_evaluates(corpus, tmp_path):
    result = train_here(configuration(corpus, tmp_path, do_train=False))
    assert result.step == 0 and result.valid_loss is not None and result.train_loss is None


def test_fp16_trains_if_the_device_supports_it_and_raises_otherwise(corpus, tmp_path):
    from deepspeed.accelerator import get_accelerator

    fp16 = {"precision": "fp16", "fp16": {"enabled": True, "initial_scale_power": 8}}
    config = configuration(corpus, tmp_path / "half", **fp16, zero_optimization={"stage": 1})
    if not get_accelerator().is_fp16_supported():
        with pytest.raises(ConfigError, match="not supported on this device.*bfloat16"):
            train_here(config)
        return
    train_here(config)
    train_here(configuration(corpus, tmp_path / "full"))
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=0.01)


def test_fp16_without_zero_raises_because_deepspeed_does_not_scale_the_loss(corpus, tmp_path):
    with pytest.raises(ConfigError, match="precision fp16 (needs ZeRO stage 1|is not supported on this device)"):
        train_here(configuration(corpus, tmp_path, precision="fp16"))
