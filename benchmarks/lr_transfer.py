"""Learning-rate transfer: held-out loss over learning rates at several widths, muP beside SP, on the default corpus.

    python benchmarks/lr_transfer.py --out runs/lr_transfer --workers 2

Byte level, 3 layers, head dimension 32, sequence 128, batch 8, 200 steps. Every run is kept; started again, it goes
on with those that are missing. Prints one table a parametrization, and by how many grid steps the best rate moves.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BASE_WIDTH, HEAD_DIM = 64, 32


@dataclass(frozen=True)
class Trial:
    parametrization: str
    width: int
    log2_lr: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.parametrization}-w{self.width}-lr{self.log2_lr}-s{self.seed}"


def configuration(trial: Trial, data: Path, out: Path, iters: int) -> dict[str, Any]:
    return {
        "num_layers": 3,
        "hidden_size": trial.width,
        "num_attention_heads": trial.width // HEAD_DIM,
        "seq_length": 128,
        "pos_emb": "rotary",
        "no_weight_tying": True,
        "init_method_std": 0.05,
        "use_mup": trial.parametrization == "mup",
        "mup_base_hidden_size": BASE_WIDTH,
        "mup_base_num_attention_heads": BASE_WIDTH // HEAD_DIM,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 2.0**trial.log2_lr, "betas": [0.9, 0.95], "eps": 1e-8},
        },
        "lr_decay_style": "cosine",
        "warmup": 0.05,
        "weight_decay": 0.1,
        "train_micro_batch_size_per_gpu": 8,
        "train_iters": iters,
        "eval_interval": iters,
        "eval_iters": 60,
        "do_test": False,
        "log_interval": 50,
        "num_workers": 0,
        "seed": trial.seed,
        "data_path": str(data / "text_document"),
        "tokenizer_type": "CharLevelTokenizer",
        "make_vocab_size_divisible_by": 1,
        "log_dir": str(out / trial.name),
    }


def run_trial(job: tuple[Trial, Path, Path, int]) -> tuple[Trial, float]:
    """Held-out loss in nats a byte; infinite where training diverged."""
    trial, data, out, iters = job
    import torch

    torch.set_num_threads(1)
    from megatron.errors import TrainingError
    from megatron.initialize import initialize_megatron
    from megatron.monitoring import read_metrics
    from megatron.neox_arguments import NeoXArgs
    from megatron.training.trainer import train

    args = NeoXArgs.from_dict(configuration(trial, data, out, iters), world_size=1)
    metrics = out / trial.name / "metrics.jsonl"
    if metrics.is_file():
        done = [record["valid/loss"] for record in read_metrics(metrics)[1] if record["step"] == iters]
        if done:
            return trial, done[-1]
    try:
        result = train(args, initialize_megatron(seed=trial.seed))
    except TrainingError:
        return trial, math.inf
    return trial, result.valid_loss if result.valid_loss is not None else math.inf


def table(losses: dict[Trial, float], parametrization: str, widths: Sequence[int], rates: Sequence[int]) -> str:
    """Mean over seeds, the best of each width in bold; and how far the best rate moves."""
    lines = [f"| {parametrization}, width | " + " | ".join(f"2^{rate}" for rate in rates) + " |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    best = []
    for width in widths:
        means = []
        for rate in rates:
            seeds = [
                v
                for t, v in losses.items()
                if (t.parametrization, t.width, t.log2_lr) == (parametrization, width, rate)
            ]
            means.append(sum(seeds) / len(seeds))
        best.append(rates[means.index(min(means))])
        cells = [f"**{m:.4f}**" if m == min(means) else f"{m:.4f}" for m in means]
        lines.append(f"| {width} | " + " | ".join(cells) + " |")
    moved = max(best) - min(best)
    lines.append(
        f"\n{parametrization}: best rates " + ", ".join(f"2^{b}" for b in best) + f"; moved {moved} grid steps"
    )
    return "\n".join(lines)


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lr_transfer"))
    parser.add_argument(
        "--data", type=Path, default=Path("data/corpus_bytes"), help="byte-level corpus; made if missing"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--log2-lr", type=int, nargs="+", default=[-10, -9, -8, -7, -6, -5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(input_args)
    if not (options.data / "text_document.idx").is_file():
        import prepare_data

        prepare_data.main(["--tokenizer", "byte", "--output-dir", str(options.data)])
    os.environ["OMP_NUM_THREADS"] = "1"
    grid = itertools.product(("mup", "sp"), options.widths, options.log2_lr, options.seeds)
    trials = sorted((Trial(*point) for point in grid), key=lambda trial: (trial.seed, -trial.width))
    jobs = [(trial, options.data, options.out, options.iters) for trial in trials]
    losses: dict[Trial, float] = {}
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for trial, loss in pool.imap_unordered(run_trial, jobs):
            losses[trial] = loss
            print(f"[{len(losses)}/{len(jobs)}] {trial.name}: {loss:.4f}", flush=True)
    for parametrization in ("mup", "sp"):
        print("\n" + table(losses, parametrization, options.widths, options.log2_lr))
    return 0


if __name__ == "__main__":
    sys.exit(main())
