"""The dry run: exact parameter counts, bounded memory, and estimates against closed forms."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from megatron.dry_run import model as dry_model
from megatron.dry_run.report import report
from megatron.dry_run.run import DryRun, dry_run
from megatron.errors import ConfigError
from megatron.mpu import Shard
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import dry_run_config

ROOT = Path(__file__).resolve().parents[2]
HIDDEN, LAYERS, SEQUENCE, MICRO, STEPS = 64, 4, 32, 2, 6


def of(**changes: Any) -> DryRun:
    config = {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": 8,
        "seq_length": SEQUENCE,
        "pos_emb": "rotary",
        "no_weight_tying": True,
        "tokenizer_type": "CharLevelTokenizer",
        "make_vocab_size_divisible_by": 1,
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": STEPS,
        "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
        "model_parallel_size": 2,
        "pipe_parallel_size": 2,
        "world_size": 8,
        "use_mup": True,
        "mup_base_hidden_size": 16,
    }
    return dry_run(dry_run_config(NeoXArgs.from_dict({**config, **changes})))


def published(layers: int, hidden: int, rows: int) -> int:
    """Parameters of an untied GPT with biases, rotary positions and two LayerNorms per block."""
    return layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden + 2 * rows * hidden


PEAK = "import resource; print('peak KiB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


@pytest.mark.parametrize(
    ("config", "layout", "exact", "stored"),
    [
        # GPT-NeoX-20B as published has 20,554,567,680 parameters, its vocabulary of 50,277 padded to 50,432 rows
        ("20B.yml", (2, 4, 8), published(44, 6144, 50277), 20_554_567_680),
        ("175B.yml", (8, 16, 1024), published(96, 12288, 50257), published(96, 12288, 51200)),
    ],
)
def test_published_models_exactly_within_memory(
    config: str, layout: tuple[int, int, int], exact: int, stored: int, tmp_path: Path
) -> None:
    tensor, pipe, world = map(str, layout)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50277)}, unk_token="w0"))
    words.save(str(tmp_path / "words.json"))  # the file that 20B's HFTokenizer reads
    sizes = ["--model-parallel-size", tensor, "--pipe-parallel-size", pipe, "--world-size", world]
    code = f"import sys, train; code = train.main(sys.argv[1:]); {PEAK}; sys.exit(code)"
    command = [sys.executable, "-c", code, str(ROOT / "configs" / config), "--dry-run", *sizes]
    command += ["--vocab-file", str(tmp_path / "words.json")] if config == "20B.yml" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"parameters: {exact:,} ({stored:,} stored" in done.stdout
    assert int(done.stdout.split("peak KiB")[1]) < 1.5 * 2**20


def test_the_parts_of_all_ranks_make_up_the_model() -> None:
    result = of()
    assert [(rank.part.pipe, rank.part.tensor) for rank in result.ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert result.parameters == published(LAYERS, HIDDEN, 512) == result.stored
    assert result.run.grid.data == 2
    tied = of(no_weight_tying=False)
    assert tied.parameters == published(LAYERS, HIDDEN, 512) - 512 * HIDDEN
    assert sum(rank.part.tied_copies for rank in tied.ranks) == 512 * HIDDEN


# (layers, hidden size, heads, sequence, batch, vocabulary, norm, parallel residual): peak of torch's allocator in GiB
# over the first steps in bfloat16, eager, measured on one H200 with torch 2.11 and DeepSpeed 0.19.8
MEASURED = {
    "125M": ((12, 768, 12, 2048, 16, 50257, "layernorm", True), 30.8),
    "1.3B": ((24, 2048, 16, 2048, 8, 50257, "layernorm", True), 54.9),
    "6.7B, 4 blocks": ((4, 4096, 32, 2048, 8, 50257, "layernorm", True), 34.4),
    "deep": ((6, 1024, 8, 1024, 8, 512, "rmsnorm", False), 3.00),
    "wide": ((2, 2048, 16, 1024, 4, 512, "rmsnorm", False), 2.17),
}


@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_within_a_tenth_of_the_memory_used_on_a_gpu(name: str, tmp_path: Path) -> None:
    (layers, hidden, heads, sequence, batch, vocabulary, norm, parallel), peak = MEASURED[name]
    words = models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0")
    Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    result = of(
        num_layers=layers, hidden_size=hidden, num_attention_heads=heads, seq_length=sequence, norm=norm,
        rotary_pct=0.25 if parallel else 1.0, gpt_j_residual=parallel, train_micro_batch_size_per_gpu=batch,
        gradient_accumulation_steps=1, mup_base_hidden_size=hidden // 2, model_parallel_size=1, pipe_parallel_size=1,
        world_size=1, precision="bfloat16", zero_optimization={"stage": 1}, make_vocab_size_divisible_by=128,
        tokenizer_type="HFTokenizer", vocab_file=str(tmp_path / "tokenizer.json"),
    )  # fmt: skip
    assert result.ranks[0].memory.total / 2**30 == pytest.approx(peak, rel=0.1)


EXPERTS = {"moe_num_experts": 8, "moe_top_k": 2, "moe_router_type": "topk", "moe_expert_interval": 2}


def test_experts_count_in_total_active_and_in_flops() -> None:
    """Closed forms: blocks 0 and 2 have 8 experts of 8 h^2 without biases and a router of 8 h; 1 and 3 have an MLP."""
    result, dense = of(**EXPERTS), of()
    mlp, biases, router = 8 * HIDDEN**2, 5 * HIDDEN, 8 * HIDDEN
    assert result.parameters == dense.parameters + 2 * (7 * mlp - biases + router)
    active = dense.parameters + 2 * (mlp - biases + router)
    assert result.plan.num_active_parameters == active
    extra = 6 * 2 * (mlp + router) * result.tokens_per_step
    assert result.run.flops_per_step == dense.run.flops_per_step + extra
    text = report(result)
    assert f"parameters: {result.parameters:,}" in text and f", {active:,} active per token" in text
    assert "active" not in report(dense)


def test_every_rank_holds_a_part_of_every_expert() -> None:
    ranks = of(**EXPERTS, pipe_parallel_size=0, world_size=2).ranks
    whole = of(**EXPERTS, pipe_parallel_size=0, model_parallel_size=1, world_size=1).ranks[0].part
    assert ranks[0].part.parameters == ranks[1].part.parameters
    assert sum(rank.part.sharded for rank in ranks) == whole.sharded
    assert ranks[0].part.replicated == whole.replicated > 2 * 8 * HIDDEN  # routers are replicated


def test_blocks_with_experts_keep_more_activations_and_sum_the_gradients_of_the_logits() -> None:
    flat = {"pipe_parallel_size": 0, "world_size": 2}
    ranks = [of(**flat, **changes).ranks[0] for changes in ({}, EXPERTS, {**EXPERTS, "moe_expert_interval": 1})]
    kept = [rank.memory.activations for rank in ranks]
    assert kept[0] < kept[1] < kept[2] and kept[2] - kept[1] == pytest.approx(kept[1] - kept[0])
    logits = 4 * MICRO * SEQUENCE * 8
    calls, size = ([rank.traffic.entries["tensor", "all_reduce"][i] for rank in ranks] for i in (0, 1))
    assert calls[1] == calls[0] + 2 * STEPS and size[1] == size[0] + 2 * STEPS * logits
    spans = of(**flat, **EXPERTS, checkpoint_activations=True, checkpoint_num_layers=1).ranks[0]
    assert spans.memory.activations < kept[1]


def test_memory_follows_zero_and_precision() -> None:
    first = of().ranks[0]
    held = first.part.parameters
    assert first.memory.weights == first.memory.gradients == 4 * held and first.memory.optimizer == 8 * held
    half = of(precision="bfloat16", zero_optimization={"stage": 1}).ranks[0].memory
    assert (half.weights, half.gradients, half.optimizer) == (2 * held, 2 * held, 12 * held / 2)
    flat = {"pipe_parallel_size": 0, "world_size": 4, "precision": "bfloat16"}
    all_of_it = of(**flat).ranks[0].part.parameters
    cut = of(**flat, zero_optimization={"stage": 3}).ranks[0].memory
    assert (cut.weights, cut.gradients, cut.optimizer) == (all_of_it, all_of_it, 6 * all_of_it)


def test_stages_keep_as_many_microbatches_as_are_in_flight() -> None:
    ranks = [rank for rank in of(pipe_parallel_size=4, world_size=8).ranks if rank.part.tensor == 0]
    middle = [rank.memory.activations for rank in ranks if len(rank.part.layers) == 1]
    assert len(middle) == 2 and middle[0] * 2 == middle[1] * 3  # stages 1 and 2 of 4 keep 3 and 2


def test_the_blocks_of_a_stage_keep_one_mask() -> None:
    """A sliding window below the sequence length costs one mask of s x s fp32 numbers in each stage."""
    plain, cut, whole = (of(sliding_window_width=width).ranks for width in (None, 7, SEQUENCE - 1))
    assert [b.memory.activations - a.memory.activations for a, b in zip(plain, cut)] == [4 * SEQUENCE**2] * 4
    assert [rank.memory for rank in whole] == [rank.memory for rank in plain]


def test_recomputation_and_sequence_parallelism_keep_less() -> None:
    plain, cut = of().ranks[1].memory.activations, of(sequence_parallel=True).ranks[1].memory.activations
    again = of(checkpoint_activations=True, checkpoint_num_layers=1).ranks[1].memory.activations
    assert cut < plain and again < plain


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_tensor_parallel_traffic_is_the_closed_form(sequence_parallel: bool) -> None:
    """Hidden-state all-reduces: 1 in the embedding, 2 forward and 2 backward per block, 1 in the readout. Loss: 2."""
    traffic = of(pipe_parallel_size=0, world_size=2, sequence_parallel=sequence_parallel).ranks[0].traffic
    hidden = 4 * MICRO * SEQUENCE * HIDDEN
    tokens = MICRO * SEQUENCE
    reductions = STEPS * (4 * LAYERS + 2)
    loss_bytes = STEPS * (4 + 8) * tokens  # 2 (n - 1) / n is 1 over two ranks
    if sequence_parallel:
        half = reductions * hidden / 2
        assert traffic.entries["tensor", "all_gather"] == (reductions, half)
        assert traffic.entries["tensor", "reduce_scatter"] == (reductions, half)
        assert traffic.entries["tensor", "all_reduce"] == (2 * STEPS, loss_bytes)
    else:
        assert traffic.entries == {("tensor", "all_reduce"): (reductions + 2 * STEPS, reductions * hidden + loss_bytes)}


def test_pipeline_and_data_parallel_traffic() -> None:
    ranks = of(pipe_parallel_size=4, world_size=16, zero_optimization={"stage": 1}).ranks
    hidden = 4 * MICRO * SEQUENCE * HIDDEN
    sends = [rank.traffic.entries["pipe", "send"] for rank in ranks if rank.part.tensor == 0]
    assert sends == [(STEPS, STEPS * hidden), *[(2 * STEPS, 2 * STEPS * hidden)] * 2, (STEPS, STEPS * hidden)]
    size = 4 * ranks[0].part.parameters
    assert ranks[0].traffic.entries["data", "all_reduce"] == (1, size)
    assert ranks[0].traffic.entries["data", "all_gather"] == (1, size / 2)


def test_the_time_is_compute_bubble_and_communication() -> None:
    result = of(pipe_parallel_size=4, world_size=8, dry_run_gpu="A100")
    step = result.step
    assert step.total == step.compute + step.bubble + step.communication
    assert step.compute == pytest.approx(result.run.flops_per_step / 8 / (312e12 * 0.5))
    assert step.bubble >= step.compute * 3 / STEPS
    assert of(dry_run_gpu="H100").step.compute < of(dry_run_gpu="A100").step.compute


def test_the_report_names_every_stage_and_the_totals() -> None:
    text = report(of())
    assert f"parameters: {published(LAYERS, HIDDEN, 512):,}" in text
    assert "embedding, blocks 0-1" in text and "blocks 2-3, final norm, readout" in text
    assert "tensor 2 x pipe 2 x data 2 = 8 processes" in text


def test_a_wrong_shard_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-NeoX's defect: the local fan-in of a row-parallel matrix is used as the global one."""
    real = dry_model.shard_of

    def forget_rows(parameter: torch.nn.Parameter) -> Shard | None:
        spec = real(parameter)
        return None if spec is not None and spec.dim == 1 else spec

    monkeypatch.setattr(dry_model, "shard_of", forget_rows)
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.dense\.weight.*a width multiplier of 2 instead of 4"):
        of()


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="dry-run-gpu: 'Voodoo 2' is not known"):
        of(dry_run_gpu="Voodoo 2")
    with pytest.raises(ConfigError, match="set padded-vocab-size"):
        of(tokenizer_type="HFTokenizer")
    known = of(tokenizer_type="HFTokenizer", padded_vocab_size=1024)
    assert known.plan.config.vocab_size == 1024


def test_the_plan_needs_no_process_group() -> None:
    code = (
        "import json, torch, train, sys;"
        f"code = train.main([{str(ROOT / 'configs' / '125M.yml')!r}, '--dry-run', '--padded-vocab-size', '50304']);"
        "print(json.dumps([code, torch.distributed.is_initialized()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [0, False], done.stderr
    assert dataclasses.is_dataclass(DryRun)
