"""Measures the model FLOPs utilisation (MFU) of one GPU for three shapes in bfloat16, eager and compiled.

    python benchmarks/gpu_training.py --out runs/gpu_training

Each row is a run of train.py on random tokens, started as a user would: 125M and 1.3B in full, and four blocks of the
6.7B shape with its embedding and readout. MFU follows PaLM (arXiv:2204.02311, appendix B): the model's FLOPs per token
times tokens per second, divided by the dense bf16 peak of the device's data sheet. The FLOPs per token are 6 per weight
of a matrix, plus attention over the whole sequence, without recomputation. The reported value is the median of the last
log windows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.entry import run_script
from megatron.errors import ConfigError, TrainingError

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 50257
SEQUENCE = 2048
# name: layers, hidden size, heads, batch, target
SHAPES = {
    "125M": (12, 768, 12, 16, 0.40),
    "1.3B": (24, 2048, 16, 8, 0.50),
    "6.7B, 4 blocks": (4, 4096, 32, 8, 0.50),
}
STEPS, WARM_UP, WINDOW = 25, 10, 5


def make_data(folder: Path) -> dict[str, str]:
    """Write random tokens and a tokenizer of VOCABULARY tokens. Returns the configuration keys that name them."""
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    words = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<|endoftext|>": VOCABULARY - 1}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    prefix = folder / "random"
    samples = STEPS * max(batch for _, _, _, batch, _ in SHAPES.values()) + 64
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for seed in range(samples // 16):
            tokens = np.random.default_rng(seed).integers(0, VOCABULARY, 16 * (SEQUENCE + 1), dtype=np.uint16)
            builder.add_documents(tokens, [len(tokens)])
        builder.finalize()
    return {"data-path": str(prefix), "tokenizer-type": "HFTokenizer", "vocab-file": str(folder / "tokenizer.json")}


def configuration(shape: str, compiled: bool, data: dict[str, str]) -> dict[str, Any]:
    """A NeoX configuration of the shape, with muP."""
    layers, hidden, heads, batch, _ = SHAPES[shape]
    return {
        **data,
        "num-layers": layers,
        "hidden-size": hidden,
        "num-attention-heads": heads,
        "seq-length": SEQUENCE,
        "max-position-embeddings": SEQUENCE,
        "pos-emb": "rotary",
        "rotary-pct": 0.25,
        "gpt-j-residual": True,
        "no-weight-tying": True,
        "use-mup": True,
        "mup-base-hidden-size": hidden // 2,
        "precision": "bfloat16",
        "zero-optimization": {"stage": 1},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}},
        "train-micro-batch-size-per-gpu": batch,
        "train-iters": STEPS,
        "eval-iters": 0,
        "log-interval": WINDOW,
        "torch-compile": compiled,
    }


def measure(folder: Path, config: dict[str, Any]) -> dict[str, float]:
    """Train, and return the median MFU, TFLOP/s, tokens per second and peak GiB over the windows after warm-up."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.json"
    path.write_text(json.dumps({**config, "log-dir": str(folder)}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run([sys.executable, str(ROOT / "train.py"), str(path)], env=environment, capture_output=True)
    if ran.returncode:
        raise TrainingError(f"{path}: training failed\n{(ran.stdout + ran.stderr).decode()[-3000:]}")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = [record for record in lines if record.get("step", 0) > WARM_UP and "tokens_per_second" in record]
    names = [name for name in ("mfu", "tflops", "tokens_per_second", "peak_memory_gib") if name in kept[-1]]
    return {name: statistics.median(record[name] for record in kept) for name in names}


def rows(out: Path, shapes: Sequence[str]) -> Iterator[tuple[str, str, dict[str, float], float]]:
    """Measure every shape, eager and compiled. Yields (shape, mode, results, target)."""
    data = make_data(out.resolve() / "data")
    for shape in shapes:
        for compiled in (False, True):
            how = "compiled" if compiled else "eager"
            folder = out.resolve() / f"{shape.split(',')[0]}-{how}"
            yield shape, how, measure(folder, configuration(shape, compiled, data)), SHAPES[shape][-1]


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_training"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args(input_args)
    if not torch.cuda.is_available():
        raise ConfigError("this benchmark needs a GPU, but torch finds none")
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}; bfloat16, sequence {SEQUENCE}, muP on\n")
    print("| shape | | MFU | target | TFLOP/s | tokens/s | peak GiB |\n|---|---|---|---|---|---|---|")
    for shape, how, got, target in rows(options.out, options.shapes):
        mfu = f"{got['mfu']:.1%}" if "mfu" in got else "-"
        print(
            f"| {shape} | {how} | {mfu} | {target:.0%} | {got['tflops']:.0f} | {got['tokens_per_second']:,.0f} |"
            f" {got['peak_memory_gib']:.1f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
