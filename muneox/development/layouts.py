"""Train small models under many parallel layouts in up to four processes and compare each with one process.

    python tools/layouts.py [--steps 10] [--only TEXT] [--json FILE]

In fp32, loss and gradient norm of every step must agree to a relative 1e-5, and the initial weights, gathered from the
ranks, bit for bit. The exit code is 1 if a layout does not agree. Runs on the CPU over gloo.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
STUCK_AFTER = 120.0  # seconds for one layout, after which the process prints its traceback and exits

MODELS: Mapping[str, Mapping[str, Any]] = {
    "GPT, untied": {"no_weight_tying": True},
    "GPT, tied, learned positions": {"no_weight_tying": False, "pos_emb": "learned", "max_position_embeddings": 16},
    "Llama, GQA, SwiGLU": {
        "no_weight_tying": True,
        "num_attention_heads": 8,
        "num_kv_heads": 4,
        "mup_base_num_attention_heads": 2,
        "mup_base_num_kv_heads": 1,
        "norm": "rmsnorm",
        "activation": "swiglu",
        "mlp_multiple_of": 4,
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
    },
    "parallel residual, q-k norm": {"no_weight_tying": True, "gpt_j_residual": True, "use_qk_layernorm": True},
    "MoE, top-k, SwiGLU": {
        "no_weight_tying": True,
        "activation": "swiglu",
        "mlp_multiple_of": 4,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_router_type": "topk",
        "moe_normalize_expert_weights": True,
        "moe_aux_loss_coeff": 0.1,
        "moe_z_loss_coeff": 0.01,
    },
    "MoE, sinkhorn, interval 2": {
        "no_weight_tying": False,
        "moe_num_experts": 4,
        "moe_expert_interval": 2,
        "moe_z_loss_coeff": 0.1,
    },
    "ALiBi in a sliding window": {"no_weight_tying": True, "pos_emb": "alibi", "sliding_window_width": 5},
    "relative position bias": {
        "no_weight_tying": False,
        "pos_emb": "rpe",
        "rpe_num_buckets": 8,
        "rpe_max_distance": 12,
    },
    "sinusoidal positions, ScaleNorm": {
        "no_weight_tying": True,
        "pos_emb": "sinusoidal",
        "norm": "scalenorm",
        "use_qk_layernorm": True,
    },
    "OPT's positions, norms without weights": {
        "no_weight_tying": False,
        "pos_emb": "learned",
        "opt_pos_emb_offset": 2,
        "max_position_embeddings": 18,
        "norm": "non_parametric_layernorm",
    },
}
_UNTIED, _TIED, _LLAMA, _PARALLEL, _TOPK, _SINKHORN, _ALIBI, _RPE, _SINUSOIDAL, _OPT = MODELS


@dataclass(frozen=True)
class Layout:
    """One case: a model, its parametrization and its parallel layout."""

    model: str
    tensor: int = 1
    pipe: int = 0
    data: int = 1
    zero: int = 0
    sequence_parallel: bool = False
    mup: bool = True
    offload: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor * max(self.pipe, 1) * self.data

    @property
    def name(self) -> str:
        parts = [f"TP {self.tensor}", f"PP {self.pipe}", f"DP {self.data}", f"ZeRO {self.zero}"]
        return " ".join(parts) + (" SP" if self.sequence_parallel else "") + (" offload" if self.offload else "")


LAYOUTS: tuple[Layout, ...] = (
    Layout(_UNTIED, tensor=2),
    Layout(_UNTIED, tensor=2, mup=False),
    Layout(_UNTIED, tensor=2, sequence_parallel=True),
    Layout(_UNTIED, pipe=2),
    Layout(_UNTIED, pipe=2, mup=False),
    Layout(_UNTIED, data=2, zero=1),
    Layout(_UNTIED, data=2, zero=2),
    Layout(_UNTIED, data=2, zero=3),
    Layout(_UNTIED, data=2, zero=3, mup=False),
    Layout(_UNTIED, data=2, zero=2, offload=True),
    Layout(_UNTIED, data=2, zero=3, offload=True),
    Layout(_TIED, tensor=2),
    Layout(_TIED, tensor=2, sequence_parallel=True),
    Layout(_TIED, pipe=2),
    Layout(_TIED, data=2, zero=3),
    Layout(_LLAMA, tensor=2, sequence_parallel=True),
    Layout(_LLAMA, pipe=2),
    Layout(_LLAMA, data=2, zero=3),
    Layout(_PARALLEL, tensor=2),
    Layout(_PARALLEL, tensor=2, sequence_parallel=True),
    Layout(_TOPK, tensor=2),
    Layout(_TOPK, tensor=2, sequence_parallel=True),
    Layout(_TOPK, pipe=2),
    Layout(_TOPK, data=2, zero=1),
    Layout(_TOPK, data=2, zero=2),
    Layout(_TOPK, data=2, zero=3),
    Layout(_TOPK, tensor=2, mup=False),
    Layout(_SINKHORN, tensor=2),
    Layout(_SINKHORN, pipe=2),
    Layout(_SINKHORN, data=2),
    Layout(_ALIBI, tensor=2, sequence_parallel=True),
    Layout(_ALIBI, pipe=2),
    Layout(_RPE, tensor=2, sequence_parallel=True),
    Layout(_RPE, pipe=2),
    Layout(_RPE, data=2, zero=3),
    Layout(_SINUSOIDAL, tensor=2, sequence_parallel=True),
    Layout(_SINUSOIDAL, pipe=2),
    Layout(_SINUSOIDAL, data=2, zero=3),
    Layout(_OPT, tensor=2, sequence_parallel=True),
    Layout(_OPT, pipe=2),
    Layout(_UNTIED, tensor=4),
    Layout(_UNTIED, pipe=4),
    Layout(_UNTIED, data=4),
    Layout(_UNTIED, tensor=2, data=2, zero=1),
    Layout(_UNTIED, tensor=2, data=2, zero=2, sequence_parallel=True),
    Layout(_UNTIED, tensor=2, data=2, zero=3, sequence_parallel=True),
    Layout(_UNTIED, tensor=2, pipe=2),
    Layout(_UNTIED, tensor=2, pipe=2, mup=False),
    Layout(_UNTIED, pipe=2, data=2, zero=1),
    Layout(_TIED, tensor=4, sequence_parallel=True),
    Layout(_TIED, pipe=4),
    Layout(_TIED, tensor=2, pipe=2, sequence_parallel=True),
    Layout(_TIED, pipe=2, data=2, zero=1),
    Layout(_TIED, tensor=2, data=2, zero=3),
    Layout(_LLAMA, tensor=4, sequence_parallel=True),
    Layout(_LLAMA, tensor=2, pipe=2, sequence_parallel=True),
    Layout(_LLAMA, tensor=2, data=2, zero=1),
    Layout(_PARALLEL, tensor=2, pipe=2),
    Layout(_PARALLEL, tensor=4, sequence_parallel=True, mup=False),
    Layout(_TOPK, tensor=2, pipe=2, sequence_parallel=True),
    Layout(_TOPK, tensor=2, data=2, zero=1),
    Layout(_TOPK, pipe=2, data=2, zero=1),
    Layout(_SINKHORN, data=4, zero=2),
    Layout(_SINKHORN, tensor=2, pipe=2),
    Layout(_ALIBI, tensor=4),
    Layout(_RPE, tensor=2, pipe=2),
    Layout(_SINUSOIDAL, tensor=2, pipe=2),
)


def configuration(layout: Layout, corpus: Path, steps: int) -> dict[str, Any]:
    """Configuration of a model with four blocks at four times the base width, and a global batch of 8 x 16 tokens."""
    base = {
        "num_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "mup_base_num_attention_heads": 1,
        "seq_length": 16,
        "pos_emb": "rotary",
        "init_method_std": 0.1,
        "optimizer": {"type": "Adam", "params": {"lr": 0.003, "betas": [0.9, 0.95], "eps": 1e-8}},
        "weight_decay": 0.1,
        "gradient_clipping": 0.5,
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2 if layout.data < 4 else 1,
        "train_iters": steps,
        "warmup": 0.2,
        "eval_iters": 0,
        "num_workers": 0,
        "data_path": str(corpus),
        "tokenizer_type": "CharLevelTokenizer",
        "make_vocab_size_divisible_by": 96,  # one or two ranks pad the 512 tokens to 576, four ranks to 768
        "mup_base_hidden_size": 16,
        "model_parallel_size": layout.tensor,
        "pipe_parallel_size": layout.pipe,
        "sequence_parallel": layout.sequence_parallel,
        "zero_optimization": {"stage": layout.zero, **(OFFLOAD if layout.offload else {})},
        "steps_per_print": 10**9,
        "use_mup": layout.mup,
    }
    return {**base, **MODELS[layout.model]}


def make_corpus(prefix: Path) -> Path:
    """Write arithmetic progressions of bytes modulo 50, which a model can learn."""
    import numpy as np

    from megatron.data.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(prefix, np.uint16)
    for _ in range(60):
        start, stride = generator.integers(50), generator.integers(1, 4)
        builder.add_item((start + stride * np.arange(200)) % 50 + 32)
        builder.end_document()
    builder.finalize()
    return prefix


def train(layout: Layout, corpus: Path, steps: int) -> dict[str, Any]:
    """Train in this process of the layout. Returns losses, gradient norms and digests of the initial weights."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.resolve import run_config
    from megatron.training.full_state import weight_digests
    from megatron.training.trainer import Trainer

    args = NeoXArgs.from_dict(configuration(layout, corpus, steps), world_size=layout.world_size)
    trainer = Trainer(run_config(args), initialize_megatron("gloo", args.seed, layout.tensor, layout.pipe))
    module = trainer.train_module
    digests = weight_digests(module)
    batches = trainer.data.train_batches()
    losses, norms = [], []
    for _ in range(steps):
        losses.append(module.train_step(batches)[0])
        norms.append(module.grad_norm())
    module.engine.destroy()
    return {"layout": asdict(layout), "loss": losses, "grad_norm": norms, "digests": digests}


def _work(layouts: Sequence[Layout], corpus: Path, steps: int, output: Path) -> None:
    """Train all layouts of this process's world size one after another."""
    import torch

    torch.set_num_threads(1)
    results = []
    for layout in layouts:
        print(f"{layout.model}: {layout.name}", flush=True)
        faulthandler.dump_traceback_later(STUCK_AFTER, exit=True)
        results.append(train(layout, corpus, steps))
        faulthandler.cancel_dump_traceback_later()
    if int(os.environ.get("RANK", "0")) == 0:
        output.write_text(json.dumps(results))


def run_world(layouts: Sequence[Layout], corpus: Path, steps: int, timeout: float = 900) -> list[dict[str, Any]]:
    """Start the processes for layouts of one world size. Returns their results. Raises RuntimeError on a failure."""
    size = layouts[0].world_size
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        output = Path(name) / "results.json"
        job = json.dumps([[asdict(layout) for layout in layouts], str(corpus), steps, str(output)])
        environment = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        environment["MASTER_PORT"] = str(probe.getsockname()[1])
        probe.close()
        processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "muneox.development.layouts", "--worker", job],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            text = processes[0].communicate(timeout=timeout)[0]
            if any(process.wait(timeout=60) for process in processes):
                raise RuntimeError(f"a process of {size} failed:\n{text[-4000:]}")
        finally:
            for process in processes:
                process.kill()
        return list(json.loads(output.read_text()))


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    """Largest relative difference of two sequences."""
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Row:
    """Largest relative differences between a layout and one process."""

    layout: Layout
    loss: float
    grad_norm: float
    same_weights: bool

    @property
    def passed(self) -> bool:
        return self.same_weights and max(self.loss, self.grad_norm) <= TOLERANCE


def compare(layouts: Sequence[Layout], corpus: Path, steps: int) -> list[Row]:
    """Train every layout, train each model in one process, and compare them."""
    singles = {(layout.model, layout.mup): Layout(layout.model, mup=layout.mup) for layout in layouts}
    references = dict(zip(singles, run_world(list(singles.values()), corpus, steps), strict=True))
    rows = {}
    for size in sorted({layout.world_size for layout in layouts}):
        chosen = [layout for layout in layouts if layout.world_size == size]
        for layout, result in zip(chosen, run_world(chosen, corpus, steps), strict=True):
            one = references[layout.model, layout.mup]
            rows[layout] = Row(
                layout,
                _apart(result["loss"], one["loss"]),
                _apart(result["grad_norm"], one["grad_norm"]),
                result["digests"] == one["digests"],
            )
    return [rows[layout] for layout in layouts]


def _print(rows: Sequence[Row], steps: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Every layout against one process, {steps} steps, fp32", title_justify="left")
    for heading in ("model", "rules", "layout", "loss, relative", "grad norm, relative", "initial weights", ""):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        cells = [f"{row.loss:.1e}", f"{row.grad_norm:.1e}", "equal" if row.same_weights else "DIFFER"]
        rules = "muP" if row.layout.mup else "SP"
        table.add_row(row.layout.model, rules, row.layout.name, *cells, "pass" if row.passed else "FAIL")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    passed = sum(row.passed for row in rows)
    print(f"{passed} of {len(rows)} layouts agree with one process to {TOLERANCE:g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", default="", help="only layouts with this text in model or layout")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        layouts, corpus, steps, output = json.loads(options.worker)
        _work([Layout(**layout) for layout in layouts], Path(corpus), steps, Path(output))
        return 0
    layouts = [layout for layout in LAYOUTS if options.only in f"{layout.model} {layout.name}"]
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(layouts, make_corpus(Path(folder) / "corpus"), options.steps)
    _print(rows, options.steps)
    if options.json:
        options.json.write_text(json.dumps([{**asdict(row), "passed": row.passed} for row in rows], indent=1))
    return 0 if rows and all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
