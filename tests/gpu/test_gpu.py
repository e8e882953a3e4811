"""What only a device can show: run with `make gpu`, or `pytest -m gpu tests/gpu` where torch sees a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.conftest import MODEL, ROOT, Train, run

HALF: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "fp16": {"precision": "fp16", "zero_optimization": {"stage": 1}},
}


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["train/loss"] for record in records]


def furthest(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Largest relative difference of the losses of two runs."""
    assert len(one) == len(other) == MODEL["train-iters"]
    return max(abs(a / b - 1.0) for a, b in zip(losses(one), losses(other)))


def test_fp32_losses_on_the_gpu_are_those_on_the_cpu(train: Train):
    assert furthest(train(gpu=True), train(gpu=False)) < 1e-4


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_converges_like_fp32(train: Train, precision: str):
    full, half = train(train_iters=100), train(train_iters=100, **HALF[precision])
    assert losses(full)[-1] < 0.5 * losses(full)[0]
    assert losses(half)[-1] == pytest.approx(losses(full)[-1], rel=0.02)


def test_a_resumed_run_gives_the_losses_of_the_uninterrupted_one(train: Train):
    whole = train(precision="bfloat16")
    train(precision="bfloat16", save="checkpoints", exit_interval=12)
    rest = train(precision="bfloat16", load="checkpoints")
    assert [record["step"] for record in rest] == list(range(13, MODEL["train-iters"] + 1))
    assert losses(rest) == losses(whole)[12:]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bfloat16", 5e-3)])
def test_compiled_blocks_give_the_losses_of_eager_ones(train: Train, precision: str, tolerance: float):
    assert furthest(train(precision=precision, torch_compile=True), train(precision=precision)) < tolerance


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_gives_the_losses_of_stage_0(train: Train, stage: int):
    plain = train(precision="bfloat16", zero_optimization={"stage": 0})
    assert furthest(train(precision="bfloat16", zero_optimization={"stage": stage}), plain) < 5e-3


def test_recomputed_activations_give_the_same_losses_in_less_memory(train: Train):
    kept = train(precision="bfloat16")
    recomputed = train(precision="bfloat16", checkpoint_activations=True)
    assert furthest(recomputed, kept) < 1e-3
    assert recomputed[-1]["peak_memory_gib"] < kept[-1]["peak_memory_gib"]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("shape", [(6, 1024, 8), (2, 2048, 4)], ids=["deep", "wide"])
def test_the_dry_run_predicts_the_peak_memory_within_a_tenth(
    train: Train, tmp_path: Path, shape: tuple[int, int, int], stage: int
):
    layers, hidden, batch = shape
    changes = {
        "num-layers": layers, "hidden-size": hidden, "num-attention-heads": hidden // 128, "seq-length": 1024,
        "max-position-embeddings": 1024, "train-micro-batch-size-per-gpu": batch, "train-iters": 3,
        "precision": "bfloat16", "zero-optimization": {"stage": stage},
    }  # fmt: skip
    peak = train(**changes)[-1]["peak_memory_gib"]
    (tmp_path / "dry.json").write_text(json.dumps({**MODEL, **changes}))
    printed = run([str(ROOT / "train.py"), "dry.json", "--dry-run", "--world-size", "1"], tmp_path, gpu=False)
    found = re.search(r"memory: ([\d.]+) GiB on the fullest rank", printed)
    assert found, printed
    assert float(found[1]) == pytest.approx(peak, rel=0.1, abs=0.05)  # it prints one decimal


def test_the_coordinate_check_and_the_audit_pass_on_the_gpu(tmp_path: Path, corpus: Path):
    (tmp_path / "model.json").write_text(json.dumps({**MODEL, "data-path": str(corpus), "log-dir": "check"}))
    run([str(ROOT / "train.py"), "model.json", "--coord-check", "true"], tmp_path)
    run([str(ROOT / "tools/mup/audit.py"), "model.json"], tmp_path)


def test_the_gpu_generates_the_text_of_the_cpu(train: Train, tmp_path: Path):
    train(save="checkpoints")
    command = [str(ROOT / "generate.py"), "model1.json", "--load", "checkpoints", "--prompt", "the of ",
               "--temperature", "0", "--maximum-tokens", "40"]  # fmt: skip
    texts = {gpu: [line for line in run(command, tmp_path, gpu).splitlines() if line.startswith("the of ")]
             for gpu in (True, False)}  # fmt: skip
    assert texts[True] == texts[False] != []
