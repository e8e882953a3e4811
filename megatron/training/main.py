"""Run a configuration in one worker process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.connections import naming_lost_connections
from megatron.initialize import Runtime, start_worker
from megatron.neox_arguments.job_configs import (
    CoordinateCheckConfig,
    DeterminismCheckConfig,
    SaveBaseShapesConfig,
    WorkerConfig,
)
from megatron.neox_arguments.run_config import RunConfig
from megatron.training.console import TrainingResult, summary
from megatron.training.coord_check_run import CheckResult, run_coord_check
from megatron.training.determinism import DeterminismResult, check_determinism
from megatron.training.save_base_shapes import run_save_base_shapes
from megatron.training.stop import StopRequest
from megatron.training.trainer import train

Result = TrainingResult | CheckResult | DeterminismResult | Path


def run(config: WorkerConfig, stop: StopRequest | None = None) -> Result:
    """Do the configured job.

    Save base shapes (returns the path), check coordinates or determinism (returns the verdict), or train (returns the
    losses). stop: lets the caller request the end of training.
    """
    match config:
        case SaveBaseShapesConfig():
            runtime = start_worker(config.launch, config.layout)
        case CoordinateCheckConfig():
            runtime = start_worker(config.launch, config.engine.layout, config.seeds[0])
        case DeterminismCheckConfig():
            run = config.run
            runtime = start_worker(run.launch, run.engine.layout, run.seed)
        case RunConfig():
            runtime = start_worker(config.launch, config.engine.layout, config.seed)
    with naming_lost_connections(runtime.rank):
        result = _work(config, runtime, stop)
        runtime.barrier()  # the watchdog of rank 0 stays until all ranks are here
    return result


def _work(config: WorkerConfig, runtime: Runtime, stop: StopRequest | None) -> Result:
    match config:
        case SaveBaseShapesConfig():
            return run_save_base_shapes(config, runtime)
        case CoordinateCheckConfig():
            return run_coord_check(config, runtime)
        case DeterminismCheckConfig():
            return check_determinism(config, runtime)
        case RunConfig():
            return train(config, runtime, stop=stop)


def run_and_report(config: WorkerConfig, notices: Sequence[str] = ()) -> int:
    """Call `run`, then print `notices` and the result on the first rank. The process ends after it.

    Returns the exit code: 1 if a check failed, otherwise 0.
    """
    result = run(config, StopRequest(ends_process=True))
    if torch.distributed.get_rank() == 0:
        for notice in notices:
            print(f"note: {notice}")
        print(describe(result, config), flush=True)
    return int(isinstance(result, CheckResult | DeterminismResult) and not result.passed)


def describe(result: Result, config: WorkerConfig) -> str:
    """Describe a result in a few lines of text."""
    if isinstance(result, DeterminismResult):
        return result.describe()
    if isinstance(result, Path):
        return f"base shapes written to {result} (and one file per additional rank)"
    if isinstance(result, CheckResult):
        lines = [result.mup.table(), f"the same check in SP, which must fail: {result.sp.summary()}"]
        if result.mup.passed and not result.passed:
            lines.append("FAIL on another rank: see the files of that rank")
        return "\n".join([*lines, *(f"wrote {file}" for file in result.files)])
    assert isinstance(config, RunConfig)
    return summary(result, config)
