"""The family of small models that the benchmarks train on bytes of the default corpus: 3 layers, head dimension 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

BASE_WIDTH, HEAD_DIM, INIT_STD = 64, 32, 0.05
# SP's search space: the learning rates of configs/mup/space.yml, and the init std over the same factors.
SP_SPACE = {
    "sampler": "random",
    "seed": 1,
    "parameters": {
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "init-method-std": {"low": INIT_STD / 10, "high": INIT_STD * 10, "log": True},
    },
}
MUP_SPACE = Path(__file__).resolve().parents[1] / "configs" / "mup" / "space.yml"


def space(use_mup: bool) -> dict[str, Any]:
    """The search space of a parametrization."""
    return yaml.safe_load(MUP_SPACE.read_text()) if use_mup else SP_SPACE


def configuration(data: Path, iters: int, width: int = BASE_WIDTH, use_mup: bool = True) -> dict[str, Any]:
    """The configuration of one model: batch 8 x 128 bytes, muP base width BASE_WIDTH."""
    return {
        "num-layers": 3,
        "hidden-size": width,
        "num-attention-heads": width // HEAD_DIM,
        "seq-length": 128,
        "pos-emb": "rotary",
        "no-weight-tying": True,
        "init-method-std": INIT_STD,
        "use-mup": use_mup,
        "mup-base-hidden-size": BASE_WIDTH,
        "mup-base-num-attention-heads": BASE_WIDTH // HEAD_DIM,
        "optimizer": {"type": "Adam", "params": {"lr": 2.0**-7, "betas": [0.9, 0.95], "eps": 1e-8}},
        "lr-decay-style": "cosine",
        "warmup": 0.05,
        "weight-decay": 0.1,
        "train-micro-batch-size-per-gpu": 8,
        "train-iters": iters,
        "eval-interval": iters,
        "eval-iters": 60,
        "log-interval": 10,
        "num-workers": 0,
        "data-path": str(data / "text_document"),
        "tokenizer-type": "CharLevelTokenizer",
        "make-vocab-size-divisible-by": 1,
        "seed": 1,
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write a YAML file. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def make_corpus(data: Path) -> None:
    """Prepare the default corpus as bytes if it is missing."""
    if not (data / "text_document.idx").is_file():
        from muneox.commands import prepare_data

        prepare_data.main(["--tokenizer", "byte", "--output-dir", str(data)])
