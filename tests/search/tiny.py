"""A tiny byte-level corpus and helpers that search on it, for tests that start processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "mup" / "search.py"


def make_corpus(folder: Path) -> None:
    """Write a corpus with regularities that a model can learn."""
    from megatron.data.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    sizes = [400] * 60
    tokens = np.concatenate([32 + np.cumsum(generator.integers(1, 4, size)) % 60 for size in sizes])
    with IndexedDatasetBuilder(folder / "text_document", np.uint16) as builder:
        builder.add_documents(tokens.astype(np.uint16), sizes)
        builder.finalize()


def write_proxy(folder: Path, **changes: object) -> Path:
    """Write a configuration that trains in well under a second."""
    values = {
        "num-layers": 1,
        "hidden-size": 16,
        "num-attention-heads": 2,
        "seq-length": 16,
        "pos-emb": "rotary",
        "no-weight-tying": True,
        "init-method-std": 0.05,
        "use-mup": True,
        "mup-base-hidden-size": 16,
        "mup-base-num-attention-heads": 2,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "betas": [0.9, 0.95]}},
        "min-lr": 0.001,
        "lr-decay-style": "cosine",
        "train-micro-batch-size-per-gpu": 4,
        "train-iters": 6,
        "eval-interval": 3,
        "eval-iters": 2,
        "log-interval": 3,
        "num-workers": 0,
        "data-path": str(folder / "text_document"),
        "tokenizer-type": "CharLevelTokenizer",
        "make-vocab-size-divisible-by": 1,
        **changes,
    }
    path = folder / "proxy.yml"
    path.write_text(json.dumps(values))
    return path


def write_space(folder: Path, text: str) -> Path:
    path = folder / "space.yml"
    path.write_text(text)
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def search_command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run_search(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a search to its end."""
    return subprocess.run(
        search_command(*arguments), env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
