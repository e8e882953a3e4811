"""The resolved configuration: one small frozen dataclass for each part of a run, with every value decided.

Made from a `NeoXArgs` by `megatron.neox_arguments.resolve`, once, at the edge. What follows receives the part that it
needs. `None` stands only for what a run does not have: no checkpoint to load, no tracking. Imports no torch.
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
WeightDecayMode = Literal["scaled", "constant", "independent"]


# --- the model ---


class TokenizerConfig(NamedTuple):
    """Arguments of `megatron.tokenizer.build_tokenizer`, in order; a tokenizer without files has none."""

    tokenizer_type: str
    vocab_file: str | None
    merge_file: str | None


@dataclass(frozen=True, kw_only=True)
class BaseShapesFileConfig:
    """Base-shape files to read, `<prefix>.<rank>` or `<prefix>`.

    num_attention_heads, num_kv_heads: of the base, which a plain `.bsh` file does not say. stated: the base dimensions
    that the configuration states too, by their names in `Widths`; the files must agree with them.
    """

    prefix: Path
    num_attention_heads: int
    num_kv_heads: int
    stated: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ParametrizationConfig:
    """muP towards `base`; or SP, where the model is its own base and every option has its neutral value."""

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
    depth_alpha: float = 0.0
    eps_scaling: bool = True
    weight_decay_mode: WeightDecayMode = "constant"
    readout_zero_init: bool = False
    query_zero_init: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A GPT up to its vocabulary, which the tokenizer decides.

    padded_vocab_size: rows of the embedding; None: the vocabulary, rounded up to a multiple of `vocab_multiple`.
    """

    widths: Widths
    architecture: Architecture
    parametrization: ParametrizationConfig
    seq_length: int
    max_position_embeddings: int
    padded_vocab_size: int | None
    vocab_multiple: int


# --- how it is trained ---


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, before muP scales it and the schedule sets its rate. clip_grad 0: no clipping."""

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
        """Numbers that the optimizer keeps for each parameter."""
        return 2 if self.kind == "adam" else int(self.momentum > 0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The base learning rate over the steps of a run; see `LearningRateSchedule`.

    On resume, `override` takes this schedule and `use_checkpoint` the saved one; with neither they must be equal.
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
    """z_loss: weight of the squared log-partition. mask_eod: end-of-document tokens do not count."""

    z_loss: float
    mask_eod: bool


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Samples of a step: size = micro x accumulation x data-parallel size."""

    size: int
    micro: int
    accumulation: int


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Parallel layout. pipe: stages; 0 and 1 are the plain module. partition_method: how layers go to stages."""

    tensor: int
    pipe: int
    partition_method: str
    sequence_parallel: bool


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What turns a planned model into one that trains.

    compile: blocks, readout and loss through torch.compile. deepspeed: DeepSpeed's JSON, without the batch sizes.
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
    """How a worker joins the others. environment: variables to set before, such as RANK under SLURM."""

    backend: str
    environment: Mapping[str, str]


# --- what it trains on, and what it leaves behind ---


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Prefixes of .bin/.idx pairs, and one weight for each. Empty: no corpora of this part."""

    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One corpus at `path`, cut by `split`; or, where `path` is None, corpora of each part."""

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


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """iters: global batches of one evaluation. interval: steps between evaluations on validation data."""

    iters: int
    interval: int
    valid: bool
    test: bool


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Checkpoints to write. factor: steps between them, or base of the powers; None: extra_steps and the last alone.

    keep_last: None keeps all.
    """

    directory: Path
    scale: Literal["linear", "log"]
    factor: float | None
    extra_steps: tuple[int, ...]
    keep_last: int | None
    rng: bool


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """A checkpoint to continue from. iteration None: the latest."""

    directory: Path
    iteration: int | None
    optimizer: bool
    rng: bool
    finetune: bool


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. mode None: online with a login, else offline."""

    project: str
    group: str | None
    team: str | None
    run_name: str | None
    host: str
    mode: Literal["online", "offline", "disabled"] | None


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """log_dir None: named after the configuration and the time. peak_tflops None: known from the device's name."""

    log_dir: Path | None
    interval: int
    param_norms: bool
    peak_tflops: float | None
    wandb: WandbConfig | None
    tensorboard_dir: Path | None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a run says of its configuration: every key, resolved, and the text of its files by name."""

    keys: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """The first file's name without its suffix."""
        return Path(next(iter(self.files), "run")).stem


# --- all of it ---


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    steps: updates of the whole training. exit_steps: updates after which to save and stop before the end.
    train: whether to train at all, or only to evaluate.
    """

    launch: LaunchConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    engine: EngineConfig
    schedule: ScheduleConfig
    batch: BatchConfig
    data: DataConfig
    evaluation: EvaluationConfig
    save: SaveConfig | None
    load: LoadConfig | None
    logging: LoggingConfig
    provenance: Provenance
    seed: int
    steps: int
    exit_steps: range
    train: bool
