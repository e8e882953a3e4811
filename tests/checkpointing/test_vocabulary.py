"""Vocabularies that need padding, from train.py to every reader of whole weights, run as a user runs them.

Losses, weights and sampled text are compared with one process that trains without padding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

import generate
from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.monitoring import read_metrics
from muneox.commands import merge_weights

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
CONFIG: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "mup_base_num_attention_heads": 2,
    "seq_length": 16,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "use_mup": True,
    "mup_base_hidden_size": 16,
    "init_method_std": 0.1,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8}},
    "train_batch_size": 4,
    "train_iters": STEPS,
    "eval_iters": 0,
    "log_interval": 1,
    "num_workers": 0,
    "data_path": "corpus",
    "tokenizer_type": "HFTokenizer",
    "vocab_file": "words.json",
    "maximum_tokens": 12,
}

PADDING = ["--make-vocab-size-divisible-by", "128"]
OTHER_PADDING = ["--make-vocab-size-divisible-by", "96"]
NO_PADDING = ["--make-vocab-size-divisible-by", "1"]

pytestmark = [pytest.mark.xdist_group("multiprocess"), pytest.mark.slow]


def make_inputs(folder: Path, vocab_size: int, **changes: Any) -> None:
    """Write a tokenizer of `vocab_size` words, a corpus of counting sequences, and model.yml."""
    words = {f"w{i}": i for i in range(vocab_size - 1)} | {"<|endoftext|>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "words.json"))
    generator = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(folder / "corpus", np.uint16)
    for _ in range(60):
        start, stride = generator.integers(vocab_size), generator.integers(1, 4)
        builder.add_item((start + stride * np.arange(100)) % vocab_size)
        builder.end_document()
    builder.finalize()
    (folder / "model.yml").write_text(yaml.safe_dump({**CONFIG, **changes}), encoding="utf-8")


def train(folder: Path, name: str, *options: str, processes: int = 1) -> list[float]:
    """Run train.py, which saves to the folder `name`, and return its losses."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    files = ["model.yml", "--save", name, "--log-dir", f"run-{name}"]
    command = [sys.executable, *launch, str(ROOT / "train.py"), *files, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    records = read_metrics(folder / f"run-{name}" / "metrics.jsonl")[1]
    return [record["train/loss"] for record in records if "train/loss" in record]


def merged(checkpoint: str) -> dict[str, torch.Tensor]:
    """Whole weights from tools/ckpts/merge_weights.py."""
    assert merge_weights.main([checkpoint, f"{checkpoint}.pt"]) == 0
    weights: dict[str, torch.Tensor] = torch.load(f"{checkpoint}.pt", weights_only=True)["weights"]
    return weights


def losses_apart(found: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / b for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("vocab_size", "layout", "changes"),
    [
        pytest.param(97, {"model_parallel_size": 2}, {}, id="97-tp2"),  # the second rank holds only padding
        pytest.param(1027, {"pipe_parallel_size": 2}, {"no_weight_tying": False}, id="1027-pp2-tied"),
        pytest.param(300, {"zero_optimization": {"stage": 3}}, {}, id="300-zero3"),
    ],
)
def test_every_reader_of_whole_weights(
    vocab_size: int,
    layout: dict[str, Any],
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_inputs(tmp_path, vocab_size, **changes)
    (tmp_path / "layout.yml").write_text(yaml.safe_dump({"overlay": True, **layout}), encoding="utf-8")
    expected = train(tmp_path, "reference", *NO_PADDING)
    first = train(tmp_path, "first", "layout.yml", *PADDING, "--exit-interval", str(STEPS // 2), processes=2)
    ways = {
        "same": (2, ["layout.yml", *PADDING]),
        "padded otherwise": (2, ["layout.yml", *OTHER_PADDING]),
        "one process": (1, NO_PADDING),
    }
    for name, (processes, options) in ways.items():
        losses = train(tmp_path, name, *options, "--load", "first", processes=processes)
        assert len(losses) == STEPS - len(first) and losses_apart([*first, *losses], expected) <= 1e-5, name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed prints how it chose the accelerator

    def sample(checkpoint: str, *options: str) -> str:
        capsys.readouterr()
        assert generate.main(["model.yml", "--load", checkpoint, "--prompt", "w3 w5 w7", *options]) == 0
        return capsys.readouterr().out

    reference, text = merged("reference"), sample("reference", *NO_PADDING)
    assert reference["embedding.word_embeddings.weight"].shape == (vocab_size, CONFIG["hidden_size"])
    assert len(text.split()) > 6
    for name in ways:
        assert sample(name, *PADDING) == sample(name, *OTHER_PADDING) == text
        weights = merged(name)
        assert weights.keys() == reference.keys()
        for parameter, weight in weights.items():
            torch.testing.assert_close(weight, reference[parameter], rtol=1e-3, atol=1e-4)
