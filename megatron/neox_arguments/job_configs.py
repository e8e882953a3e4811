"""Resolved configurations of the jobs other than training, one frozen dataclass per job. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron.neox_arguments.hosts import Hosts
from megatron.neox_arguments.run_config import (
    BatchConfig,
    DataConfig,
    EngineConfig,
    LaunchConfig,
    LayoutConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    Precision,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
)

DEFAULT_PORT = 29500
"""Port of the first host where the configuration names none, and several hosts must agree."""

GenerationKind = Literal["unconditional", "input-file", "interactive"]


@dataclass(frozen=True, kw_only=True)
class CoordinateCheckConfig:
    """A coordinate check.

    schedule: of the whole run; the check compresses it into its own steps.
    hidden_sizes: if empty, the base's hidden size times powers of width_scale. data: None for random tokens.
    """

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    schedule: ScheduleConfig
    batch_size: int
    data: DataConfig | None
    hidden_sizes: tuple[int, ...]
    width_scale: int
    seeds: tuple[int, ...]
    output: Path


@dataclass(frozen=True, kw_only=True)
class DeterminismCheckConfig:
    """A check that the first `steps` steps of a run give the same bits twice."""

    run: RunConfig
    steps: int


@dataclass(frozen=True, kw_only=True)
class SaveBaseShapesConfig:
    """Base-shape files to write to `<prefix>.<rank>`. The delta model is `width_scale` times as wide."""

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    layout: LayoutConfig
    prefix: Path
    width_scale: int


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """A static audit over the schedule of the run.

    keys: every key of the user's configuration, from which the audit derives the expected values on its own.
    """

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    schedule: ScheduleConfig
    seed: int
    keys: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """A model and its number of training tokens."""

    tokenizer: TokenizerConfig
    model: ModelConfig
    tokens: int


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """A dry run. peak_tflops: None to look it up by the GPU's name."""

    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    batch: BatchConfig
    world_size: int
    gpu: str
    peak_tflops: float | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Text generation from a checkpoint.

    iteration: None for the latest checkpoint. temperature: 0 for greedy decoding. top_k, top_p: 0 for no limit.
    input_file: the prompts of kind `input-file`, else empty. output_file: None to print only.
    """

    tokenizer: TokenizerConfig
    model: ModelConfig
    precision: Precision
    checkpoint: Path
    iteration: int | None
    seed: int
    maximum_tokens: int
    temperature: float
    top_k: int
    top_p: float
    use_cache: bool
    kind: GenerationKind
    num_samples: int
    input_file: str
    output_file: str | None
    prompt_end: str


@dataclass(frozen=True, kw_only=True)
class TaskEvaluationConfig:
    """Evaluation of a checkpoint on validation data and tasks. Every process holds the whole model.

    iteration: None for the latest checkpoint. data: None without a corpus. samples: of the validation data.
    tasks: names of the lm-evaluation-harness's tasks, or YAML files. num_fewshot, limit: None for the task's own.
    batch_size: texts per forward pass. maximum_tokens: limit of a generated answer where the task sets none.
    """

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    precision: Precision
    checkpoint: Path
    iteration: int | None
    seed: int
    loss: LossConfig
    data: DataConfig | None
    samples: int
    tasks: tuple[str, ...]
    num_fewshot: int | None
    limit: int | None
    batch_size: int
    maximum_tokens: int
    results_prefix: str
    logging: LoggingConfig


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """A model whose checkpoint is converted to another format."""

    tokenizer: TokenizerConfig
    model: ModelConfig
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class LauncherConfig:
    """Processes to start. command: the script and its arguments. hosts: None for this host alone.

    num_processes: processes on this host; None for one per device. include, exclude: devices of this host.
    master_port: None for a free port. fixed_hashes: give all processes the same order of sets of strings.
    runner_arguments: options of DeepSpeed's launcher, for other hosts. export_variables: environment variables for the
    workers on other hosts. inputs: prefixes of the data and files of the tokenizer, which the workers read. wandb_host:
    None for a run without wandb.
    """

    command: tuple[str, ...]
    hosts: Hosts | None
    num_processes: int | None
    include: str | None
    exclude: str | None
    master_addr: str | None
    master_port: int | None
    launcher: str
    force_multi: bool
    ssh_check: bool
    fixed_hashes: bool
    runner_arguments: tuple[str, ...]
    export_variables: tuple[str, ...]
    inputs: tuple[list[str], list[str]]
    wandb_host: str | None


WorkerConfig = RunConfig | CoordinateCheckConfig | DeterminismCheckConfig | SaveBaseShapesConfig
"""The jobs of a worker process."""
