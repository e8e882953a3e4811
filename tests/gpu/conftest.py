"""Tests that need a GPU: a small corpus, and runs of train.py as a user starts them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from".split()

MODEL: dict[str, Any] = {
    "num-layers": 4,
    "hidden-size": 128,
    "num-attention-heads": 4,
    "seq-length": 128,
    "max-position-embeddings": 128,
    "pos-emb": "rotary",
    "norm": "rmsnorm",
    "no-weight-tying": True,
    "use-mup": True,
    "mup-base-hidden-size": 64,
    "optimizer": {"type": "Adam", "params": {"lr": 0.004, "betas": [0.9, 0.95], "eps": 1e-8}},
    "lr-decay-style": "cosine",
    "warmup": 0.1,
    "train-micro-batch-size-per-gpu": 8,
    "train-iters": 30,
    "eval-iters": 0,
    "log-interval": 1,
    "num-workers": 0,
    "tokenizer-type": "CharLevelTokenizer",
}

Train = Callable[..., list[dict[str, Any]]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder has the marker `gpu`, and is skipped where torch sees none."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


def run(command: list[str], folder: Path, gpu: bool = True) -> str:
    """Run a script of the checkout in `folder`; what it printed. An exit code above 0 fails the test."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    ran = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return ran.stdout + ran.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Prefix of a corpus of random English words."""
    draw = random.Random(0)
    with (tmp_path / "text.jsonl").open("w") as stream:
        for _ in range(1200):
            text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(20, 80)))
            stream.write(json.dumps({"text": text}) + "\n")
    run([str(ROOT / "tools/datasets/preprocess_data.py"), "--input", "text.jsonl", "--output-prefix", "data/small",
         "--tokenizer-type", "CharLevelTokenizer", "--append-eod"], tmp_path, gpu=False)  # fmt: skip
    return tmp_path / "data" / "small_text_document"


@pytest.fixture
def train(tmp_path: Path, corpus: Path) -> Train:
    """Trains MODEL with changes, in a process of its own; the records of its log steps."""
    count = 0

    def trained(gpu: bool = True, **changes: Any) -> list[dict[str, Any]]:
        nonlocal count
        count += 1
        options = {"data-path": str(corpus), "log-dir": f"run{count}"}
        options |= {key.replace("_", "-"): value for key, value in changes.items()}
        (tmp_path / f"model{count}.json").write_text(json.dumps({**MODEL, **options}))
        run([str(ROOT / "train.py"), f"model{count}.json"], tmp_path, gpu)
        lines = (tmp_path / f"run{count}" / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if "train/loss" in record]

    return trained
