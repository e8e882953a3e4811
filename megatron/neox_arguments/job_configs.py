"""What a process may do besides training, resolved: one frozen dataclass for each job. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.neox_arguments.run_config import (
    BatchConfig,
    DataConfig,
    EngineConfig,
    LaunchConfig,
    LayoutConfig,
    ModelConfig,
    Precision,
    RunConfig,
    TokenizerConfig,
)

GenerationKind = Literal["unconditional", "input-file", "interactive"]


@dataclass(frozen=True, kw_only=True)
class CoordinateCheckConfig:
    """A coordinate check. hidden_sizes empty: the base's times powers of width_scale. data None: random tokens."""

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    lr: float
    batch_size: int
    data: DataConfig | None
    hidden_sizes: tuple[int, ...]
    width_scale: int
    seeds: tuple[int, ...]
    output: Path


@dataclass(frozen=True, kw_only=True)
class SaveBaseShapesConfig:
    """Base-shape files to write, `<prefix>.<rank>`; the delta model is `width_scale` times as wide."""

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    layout: LayoutConfig
    prefix: Path
    width_scale: int


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """A static audit at the peak rate `lr`."""

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    lr: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """A model and the number of tokens that it is trained on."""

    tokenizer: TokenizerConfig
    model: ModelConfig
    tokens: int


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """A dry run. peak_tflops None: known from the GPU's name."""

    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    batch: BatchConfig
    world_size: int
    gpu: str
    peak_tflops: float | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Text from a checkpoint. iteration None: the latest. input_file: prompts of kind `input-file`, else empty.

    temperature 0: the likeliest token. top_k, top_p 0: no such limit. output_file None: print only.
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
class LauncherConfig:
    """Arguments of DeepSpeed's runner. num_processes: on each host; None: one for each device."""

    arguments: tuple[str, ...]
    num_processes: int | None


WorkerConfig = RunConfig | CoordinateCheckConfig | SaveBaseShapesConfig
"""What a worker process may be asked to do."""
