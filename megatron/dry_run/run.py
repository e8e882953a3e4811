"""Run `--dry-run`: build the estimate from a configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass

from megatron.dry_run.estimate import Hardware, Memory, Run, StepTime, Traffic, memory, step_time, traffic
from megatron.dry_run.model import RankPart, bounds_of, build_parts, layer_costs, total_parameters
from megatron.errors import ConfigError, UserError
from megatron.model.build import ModelPlan
from megatron.monitoring.flops import PEAK_TFLOPS, peak_tflops
from megatron.mpu.topology import Grid
from megatron.neox_arguments.job_configs import DryRunConfig
from megatron.neox_arguments.run_config import TokenizerConfig
from megatron.precisions import DTYPES
from megatron.tokenizer import build_tokenizer
from megatron.training.model_from_config import model_plan
from megatron.training.report import flops_a_token

GPT2_VOCAB_SIZE = 50257  # Radford et al. 2019, section 2.2: fixed by the tokenizer's type


@dataclass(frozen=True)
class RankEstimate:
    """Estimate for one (stage, tensor-parallel rank). Its data-parallel replicas are equal."""

    part: RankPart
    memory: Memory
    traffic: Traffic


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run. `parameters` counts without vocabulary padding, `stored` with it."""

    plan: ModelPlan
    run: Run
    hardware: Hardware
    ranks: tuple[RankEstimate, ...]
    parameters: int
    stored: int
    step: StepTime
    vocabulary: str
    tokens_per_step: int


def vocabulary_size(tokenizer: TokenizerConfig, padded_vocab_size: int | None) -> tuple[int, str]:
    """Vocabulary size and its source. The tokenizer's file can be missing on this machine. Raises ConfigError."""
    kind, vocab_file = tokenizer.tokenizer_type, tokenizer.vocab_file
    if not vocab_file or os.path.exists(vocab_file):
        try:
            return build_tokenizer(*tokenizer).vocab_size, f"{kind}'s"
        except UserError:
            if vocab_file:
                raise
    if padded_vocab_size:
        return padded_vocab_size, "padded-vocab-size"
    if kind in ("GPT2BPETokenizer", "HFGPT2Tokenizer"):
        return GPT2_VOCAB_SIZE, "GPT-2's"
    raise ConfigError(f"dry-run: the vocabulary size is unknown without the file of {kind}: set padded-vocab-size")


def hardware_of(gpu: str, peak: float | None) -> Hardware:
    """Hardware of the prediction. peak: TFLOP/s, None to look up the GPU's name. ConfigError if it is unknown."""
    peak = peak or peak_tflops(gpu)
    if peak is None:
        known = ", ".join(PEAK_TFLOPS)
        raise ConfigError(f"dry-run-gpu: {gpu!r} is not known; expected one of {known}, or set peak-theoretical-tflops")
    return Hardware(gpu, peak)


def dry_run(config: DryRunConfig) -> DryRun:
    """Build every rank's part on the meta device, check its multipliers and estimate its needs. Raises ConfigError."""
    vocab_size, source = vocabulary_size(config.tokenizer, config.model.padded_vocab_size)
    plan, engine, layout = model_plan(config.model, vocab_size), config.engine, config.engine.layout
    grid = Grid.for_world(config.world_size, layout.tensor, layout.pipe)
    parts = build_parts(plan, grid, bounds_of(plan, grid.pipe, layout.partition_method), layout.sequence_parallel)
    stored, padding = total_parameters(parts), plan.config.padded_vocab_size - plan.config.vocab_size
    tables = 1 if plan.config.tied_readout else 2
    parameters = stored - padding * tables * plan.config.widths.hidden_size
    if parameters != plan.num_parameters:
        raise ConfigError(f"the ranks hold {parameters} parameters in total, but the model has {plan.num_parameters}")
    dtype = DTYPES[engine.precision]
    tokens = config.batch.size * config.model.seq_length
    run = Run(
        grid,
        engine.zero_stage,
        dtype.itemsize,
        engine.optimizer.num_moments,
        config.batch.accumulation,
        plan.config.checkpoint_every,
        flops_a_token(plan) * tokens,
    )
    costs = layer_costs(plan, grid, config.batch.micro, dtype, layout.sequence_parallel)
    ranks = tuple(RankEstimate(part, memory(part, costs, run), traffic(part, costs, run)) for part in parts)
    busiest = max(ranks, key=lambda rank: sum(size for _, size in rank.traffic.entries.values()))
    hardware = hardware_of(config.gpu, config.peak_tflops)
    time = step_time(busiest.traffic, run, hardware)
    return DryRun(plan, run, hardware, ranks, parameters, stored, time, source, tokens)
