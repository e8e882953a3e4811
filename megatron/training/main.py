"""What one worker process does with a configuration."""

from __future__ import annotations

import os
from pathlib import Path

from megatron.initialize import initialize_megatron
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.launcher import rank_environment
from megatron.training.coord_check_run import CheckResult, run_coord_check
from megatron.training.save_base_shapes import run_save_base_shapes
from megatron.training.trainer import TrainingResult, train


def run(args: NeoXArgs) -> TrainingResult | CheckResult | Path:
    """Save base shapes (the file's path), check coordinates (the verdict), or train (the final losses)."""
    os.environ.update(rank_environment(args))
    runtime = initialize_megatron(
        args.distributed_backend, args.seed, args.model_parallel_size, args.pipe_parallel_size
    )
    if args.save_base_shapes:
        return run_save_base_shapes(args, runtime)
    if args.coord_check:
        return run_coord_check(args, runtime)
    return train(args, runtime)


def run_and_report(args: NeoXArgs) -> int:
    """`run`, then say on the first rank what came out; the exit code: 1 where a coordinate check failed."""
    result = run(args)
    import torch

    is_first = torch.distributed.get_rank() == 0
    if is_first:
        for notice in args.notices():
            print(f"note: {notice}")
        print(describe(result))
    return int(isinstance(result, CheckResult) and not result.passed)


def describe(result: TrainingResult | CheckResult | Path) -> str:
    """A few lines for a person."""
    if isinstance(result, Path):
        return f"base shapes written to {result} (and one file for each further rank)"
    if isinstance(result, CheckResult):
        lines = [result.mup.table(), f"the same in SP, which must fail: {result.sp.summary()}"]
        if result.mup.passed and not result.passed:
            lines.append("FAIL on another rank: see its files")
        return "\n".join([*lines, *(f"wrote {file}" for file in result.files)])
    how = "stopped on request" if result.interrupted else "finished"
    losses = {"train": result.train_loss, "valid": result.valid_loss, "test": result.test_loss}
    shown = ", ".join(f"{name} loss {loss:.4f}" for name, loss in losses.items() if loss is not None)
    return f"{how} at step {result.step}, {result.tokens} tokens: {shown}; metrics in {result.log_dir}/metrics.jsonl"
