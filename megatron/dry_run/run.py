"""`--dry-run`: from a configuration to the report."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from megatron.dry_run.estimate import Hardware, Memory, Run, StepTime, Traffic, memory, step_time, traffic
from megatron.dry_run.model import RankPart, bounds_of, build_parts, layer_costs, total_parameters
from megatron.errors import ConfigError, UserError
from megatron.model.build import ModelPlan
from megatron.monitoring.flops import PEAK_TFLOPS, peak_tflops
from megatron.mpu.topology import Grid
from megatron.neox_arguments import NeoXArgs
from megatron.tokenizer import build_tokenizer
from megatron.training.from_args import model_plan
from megatron.training.report import flops_a_token

GPT2_VOCAB_SIZE = 50257  # Radford et al. 2019, section 2.2: fixed by the tokenizer's type
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class RankEstimate:
    """One (stage, tensor-parallel rank); its data-parallel replicas need the same."""

    part: RankPart
    memory: Memory
    traffic: Traffic


@dataclass(frozen=True)
class DryRun:
    """What a dry run found. `parameters` without, `stored` with the padding of the vocabulary."""

    plan: ModelPlan
    run: Run
    hardware: Hardware
    ranks: tuple[RankEstimate, ...]
    parameters: int
    stored: int
    step: StepTime
    vocabulary: str
    tokens_per_step: int


def vocabulary_size(args: NeoXArgs) -> tuple[int, str]:
    """Size of the vocabulary, and where it is from; the tokenizer's file need not be on this machine."""
    if not args.vocab_file or os.path.exists(args.vocab_file):
        try:
            tokenizer = build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file)
            return tokenizer.vocab_size, f"{args.tokenizer_type}'s"
        except UserError:
            if args.vocab_file:
                raise
    if args.padded_vocab_size:
        return args.padded_vocab_size, "padded-vocab-size"
    if args.tokenizer_type in ("GPT2BPETokenizer", "HFGPT2Tokenizer"):
        return GPT2_VOCAB_SIZE, "GPT-2's"
    raise ConfigError(
        f"dry-run: the file of {args.tokenizer_type} is not here, so that its size is not known: give padded-vocab-size"
    )


def hardware_of(args: NeoXArgs) -> Hardware:
    """The GPU that the prediction is for. ConfigError for one that is not listed."""
    peak = args.peak_theoretical_tflops or peak_tflops(args.dry_run_gpu)
    if peak is None:
        known = ", ".join(PEAK_TFLOPS)
        raise ConfigError(f"dry-run-gpu: {args.dry_run_gpu!r} is not known; known: {known}; or peak-theoretical-tflops")
    return Hardware(args.dry_run_gpu, peak)


def dry_run(args: NeoXArgs) -> DryRun:
    """Build every rank's part on the meta device, check its multipliers, and estimate what it needs."""
    args.require("train_micro_batch_size_per_gpu")
    vocab_size, source = vocabulary_size(args)
    plan = model_plan(args, vocab_size)
    grid = Grid.for_world(args.world_size, args.model_parallel_size, args.pipe_parallel_size)
    bounds = bounds_of(plan, grid.pipe, args.pipe_partition_method)
    parts = build_parts(plan, grid, bounds, args.sequence_parallel)
    stored, padding = total_parameters(parts), plan.config.padded_vocab_size - plan.config.vocab_size
    tables = 1 if plan.config.tied_readout else 2
    parameters = stored - padding * tables * plan.config.widths.hidden_size
    if parameters != plan.num_parameters:
        raise ConfigError(f"the ranks hold {parameters} parameters together, and the model has {plan.num_parameters}")
    dtype = _DTYPES[args.precision]
    tokens = args.train_batch_size * args.seq_length
    run = Run(
        grid,
        args.zero_stage,
        dtype.itemsize,
        2 if args.optimizer_type == "adam" else int((args.optimizer or {}).get("params", {}).get("momentum", 0) > 0),
        args.gradient_accumulation_steps,
        plan.config.checkpoint_every,
        flops_a_token(plan) * tokens,
    )
    costs = layer_costs(plan, grid, args.train_micro_batch_size_per_gpu, dtype, args.sequence_parallel)
    ranks = tuple(RankEstimate(part, memory(part, costs, run), traffic(part, costs, run)) for part in parts)
    busiest = max(ranks, key=lambda rank: sum(size for _, size in rank.traffic.entries.values()))
    hardware = hardware_of(args)
    time = step_time(busiest.traffic, run, hardware)
    return DryRun(plan, run, hardware, ranks, parameters, stored, time, source, tokens)
