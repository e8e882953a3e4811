"""A tiny corpus and configuration, and runs of the real trainer in one process or in several."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import coordinate_check_config, run_config
from megatron.training.coord_check_run import CoordinateCheck

ROOT = Path(__file__).resolve().parents[2]


def make_corpus(prefix: Path, documents: int = 60, length: int = 200) -> Path:
    """Write a corpus that a model can learn: arithmetic progressions modulo 50, as bytes."""
    generator = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(prefix, np.uint16)
    for _ in range(documents):
        start, stride = generator.integers(50), generator.integers(1, 4)
        builder.add_item((start + stride * np.arange(length)) % 50 + 32)
        builder.end_document()
    builder.finalize()
    return prefix


def configuration(corpus: Path, log_dir: Path, **changes: Any) -> dict[str, Any]:
    """Configuration of two layers at four times the base width of 16, with 8 steps of 4 samples of 16 tokens."""
    config: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "seq_length": 16,
        "pos_emb": "rotary",
        "no_weight_tying": True,
        "use_mup": True,
        "mup_base_hidden_size": 16,
        "mup_base_num_attention_heads": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8}},
        "min_lr": 0.001,
        "lr_decay_style": "cosine",
        "warmup": 0.25,
        "train_batch_size": 4,
        "train_iters": 8,
        "eval_iters": 2,
        "eval_interval": 4,
        "log_interval": 1,
        "num_workers": 0,
        "split": "80,10,10",
        "data_path": str(corpus),
        "tokenizer_type": "CharLevelTokenizer",
        "make_vocab_size_divisible_by": 1,
        "log_dir": str(log_dir),
    }
    return {**config, **changes}


def arguments(config: Mapping[str, Any], **changes: Any) -> NeoXArgs:
    return NeoXArgs.from_dict({**config, **changes}, world_size=1)


COORDINATE_CHECK = {"coord_check": True, "coord_check_seeds": 3, "optimizer": {"type": "Adam", "params": {"lr": 3e-3}}}


def coordinate_records(corpus: Path, log_dir: Path, use_mup: bool = True, **changes: Any) -> list[dict[str, Any]]:
    """Records of the coordinate check of a configuration, in muP or in the standard parametrization."""
    args = arguments(configuration(corpus, log_dir, **{**COORDINATE_CHECK, **changes}))
    return CoordinateCheck(coordinate_check_config(args), initialize_megatron()).records(use_mup)


def losses(log_dir: Path) -> list[float]:
    """Training losses of all steps in metrics.jsonl."""
    return [record["train/loss"] for record in read_metrics(log_dir / "metrics.jsonl")[1] if "train/loss" in record]


def train_here(config: Mapping[str, Any], **changes: Any) -> Any:
    """Train in this process only."""
    import torch

    from megatron.training.trainer import train

    torch.set_num_threads(1)
    resolved = run_config(arguments(config, **changes))
    return train(resolved, initialize_megatron(seed=resolved.seed))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**changes: str) -> dict[str, str]:
    """Environment of child processes: one thread each, and without the rank variables of this process."""
    distributed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE")
    kept = {key: value for key, value in os.environ.items() if key not in distributed}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def run_script(
    arguments: Sequence[str], cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a process, as a user would."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd or ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def train_processes(count: int, config: Mapping[str, Any], folder: Path) -> None:
    """Train in `count` processes over gloo. Fails with the output of a process if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), str(file)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank} of {count} exited {process.returncode}:\n{outputs[rank]}"
