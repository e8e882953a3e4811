"""Resolved configuration: one frozen dataclass per part of a run, with every value set.

`megatron.neox_arguments.resolve` builds it once from a `NeoXArgs`. Other code receives only the parts it needs. None
means that the run does not have the feature: no checkpoint to load, no tracking. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron.architecture import Architecture, Widths

Precision = Literal["fp32", "fp16", "bfloat16"]
OptimizerKind = Literal["adam", "sgd"]
OptimizerImplementation = Literal["torch", "deepspeed", "apex"]
Policy = Literal["off", "warn", "raise", "skip", "rewind"]
Packing = Literal["packed", "pack_until_overflow", "unpacked"]
WeightDecayMode = Literal["scaled", "constant", "independent"]


# --- the model ---


class TokenizerConfig(NamedTuple):
    """Arguments of `megatron.tokenizer.build_tokenizer`, in order. A file that a tokenizer does not use is None."""

    tokenizer_type: str
    vocab_file: str | None
    merge_file: str | None


@dataclass(frozen=True, kw_only=True)
class BaseShapesFileConfig:
    """Base-shape files to read, `<prefix>.<rank>` or `<prefix>`.

    num_attention_heads, num_kv_heads: head counts of the base, which a plain `.bsh` file does not contain. stated: base
    dimensions that the configuration also sets, by their names in `Widths`. The files must agree with them.
    """

    prefix: Path
    num_attention_heads: int
    num_kv_heads: int
    stated: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ParametrizationConfig:
    """muP relative to `base`, or SP: the model is its own base, and every option has its neutral value."""

    mup: bool
    optimizer: OptimizerKind
    base: Widths
    base_shapes_file: BaseShapesFileConfig | None = None
    init_method: str
    output_init_method: str
    init_std: float
    init_scale: float = 1.0
    attn_temp: float = 1.0
    output_temp: float = 1.0
    embedding_mult: float = 1.0
    rp_embedding_mult: float = 1.0
    depth_alpha: float = 0.0
    eps_scaling: bool = True
    weight_decay_mode: WeightDecayMode = "constant"
    readout_zero_init: bool = False
    query_zero_init: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A GPT without its vocabulary size, which the tokenizer sets.

    padded_vocab_size: rows of the embedding. None: the vocabulary size, rounded up to a multiple of `vocab_multiple`.
    """

    widths: Widths
    architecture: Architecture
    parametrization: ParametrizationConfig
    seq_length: int
    max_position_embeddings: int
    padded_vocab_size: int | None
    vocab_multiple: int


# --- training ---


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, before muP scaling and the schedule. clip_grad: 0 for no clipping."""

    kind: OptimizerKind
    implementation: OptimizerImplementation
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    momentum: float
    nesterov: bool
    clip_grad: float

    @property
    def num_moments(self) -> int:
        """Number of state values per parameter."""
        return 2 if self.kind == "adam" else int(self.momentum > 0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The base learning rate over the steps of a run; see `LearningRateSchedule`.

    On resume, `override` selects this schedule and `use_checkpoint` the saved one. Otherwise the two must be equal.
    """

    lr: float
    decay_iters: int
    min_lr: float = 0.0
    warmup_iters: int = 0
    decay_style: Literal["constant", "linear", "cosine", "exponential", "wsd"] = "constant"
    warmup_style: Literal["linear", "inverse_log"] = "linear"
    cooldown_iters: int = 0
    cooldown_style: Literal["linear", "cosine", "sqrt"] = "linear"
    override: bool = False
    use_checkpoint: bool = False


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """z_loss: weight of the squared log-partition function. mask_eod: ignore end-of-document tokens."""

    z_loss: float
    mask_eod: bool


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Samples per step: size = micro x accumulation x data-parallel size."""

    size: int
    micro: int
    accumulation: int


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Parallel layout.

    pipe: pipeline stages; 0 and 1 use the plain module. partition_method: how layers are assigned to stages.
    """

    tensor: int
    pipe: int
    partition_method: str
    sequence_parallel: bool


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Precision, optimizer, loss, layout and DeepSpeed options of a training engine.

    compile: compile blocks, readout and loss with torch.compile. deepspeed: DeepSpeed's JSON, without batch sizes.
    """

    precision: Precision
    zero_stage: int
    compile: bool
    optimizer: OptimizerConfig
    loss: LossConfig
    layout: LayoutConfig
    deepspeed: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How a worker joins the process group, and whether it uses only deterministic algorithms.

    timeout_minutes: time after which a rank that hangs ends the job. environment: variables to set first, for example
    RANK under SLURM.
    """

    backend: str
    timeout_minutes: float
    deterministic: bool
    environment: Mapping[str, str]


# --- data, evaluation and outputs ---


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Prefixes of .bin/.idx pairs and one weight per prefix. Empty: this part has no corpora.

    labels: prefixes of the labels of each path. Empty: every token counts in the loss.
    """

    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One corpus at `path`, divided by `split`. If `path` is None: separate corpora for each part.

    packing: how documents fill samples. allow_chopped: whether a document that is too long for a sample is cut off.
    """

    path: str | None
    split: str
    train: CorporaConfig
    valid: CorporaConfig
    test: CorporaConfig
    weight_by_num_documents: bool
    weighted_sampler_alpha: float
    seq_length: int
    seed: int
    num_workers: int
    packing: Packing = "packed"
    allow_chopped: bool = True

    @property
    def prefixes(self) -> list[str]:
        """Paths of all data sets, without .bin and .idx."""
        parts = (self.train, self.valid, self.test)
        paths = (path for part in parts for path in (*part.paths, *part.labels))
        return [*([self.path] if self.path else []), *paths]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """iters: global batches per evaluation. interval: steps between evaluations on validation data."""

    iters: int
    interval: int
    valid: bool
    test: bool


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Checkpoints to write.

    factor: steps between checkpoints, or base of the powers. None: only `extra_steps` and the last step. keep_last:
    None to keep all. background: write while training continues. forward_pass: also save a loss on fixed tokens.
    """

    directory: Path
    scale: Literal["linear", "log"]
    factor: float | None
    extra_steps: tuple[int, ...]
    keep_last: int | None
    rng: bool
    optimizer: bool
    background: bool
    forward_pass: bool


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """A checkpoint to continue from. iteration: None for the latest.

    override_data, override_optimizer: allow data, or settings of the optimizer, other than its own. forward_pass:
    compare the loss on fixed tokens with the saved one.
    """

    directory: Path
    iteration: int | None
    optimizer: bool
    rng: bool
    finetune: bool
    override_data: bool
    override_optimizer: bool
    forward_pass: bool


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What happens at a loss or gradient that is not finite, and at a loss spike.

    limit: updates in a row that may be skipped, and rewinds without progress. spike_threshold: in robust standard
    deviations. spike_window: number of losses with which one is compared.
    """

    nonfinite: Policy
    limit: int
    spike: Policy
    spike_threshold: float
    spike_window: int


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. mode: None for online if logged in, else offline."""

    project: str
    group: str | None
    team: str | None
    run_name: str | None
    host: str
    mode: Literal["online", "offline", "disabled"] | None


@dataclass(frozen=True, kw_only=True)
class ProfilingConfig:
    """Updates `first` + 1 to `last`. traces, memory: folders of the traces and of the memory snapshot, or None."""

    first: int
    last: int
    traces: Path | None
    memory: Path | None


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """log_dir: None for a name from the configuration and the time. peak_tflops: None to look it up by device name."""

    log_dir: Path | None
    interval: int
    param_norms: bool
    peak_tflops: float | None
    wandb: WandbConfig | None
    tensorboard_dir: Path | None
    profiling: ProfilingConfig | None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The recorded configuration of a run: every resolved key, and the text of each file by name."""

    keys: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the first file without its suffix."""
        return Path(next(iter(self.files), "run")).stem


# --- the complete run ---


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    steps: number of updates. exit_steps: updates after which to save and stop early. train: False to evaluate only.
    """

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    schedule: ScheduleConfig
    batch: BatchConfig
    data: DataConfig
    evaluation: EvaluationConfig
    faults: FaultConfig
    save: SaveConfig | None
    load: LoadConfig | None
    logging: LoggingConfig
    provenance: Provenance
    seed: int
    steps: int
    exit_steps: range
    train: bool
