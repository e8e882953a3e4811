"""Keys of DeepSpeed's configuration and of its launcher."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron.neox_arguments.fields.sections import (
    Bf16Section,
    CheckpointSection,
    CommsLoggerSection,
    DataTypesSection,
    DeepspeedExtraSection,
    FlopsProfilerSection,
    Fp16Section,
    OptimizerSection,
    TorchAutocastSection,
    ZeroSection,
)
from megatron.neox_arguments.hosts import ADDRESS, SELECTION
from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import Items, Pattern, Range, above, at_least
from megatron.neox_arguments.transfer import COMBINED, FAMILY, FREE, PRECISION, SEARCH, SIZE_LADDER, shifts

_OWN_MONITORS = (
    "metrics are always written to metrics.jsonl; use use_wandb or tensorboard_dir for wandb and TensorBoard"
)
_NO_CURRICULUM = "curriculum learning is not supported; without the key every sample has seq_length tokens"
_OFF: tuple[dict[str, Any], ...] = ({}, {"enabled": False})


@dataclass(kw_only=True)
class NeoXArgsDeepspeedConfig:
    """Batch sizes and the sections of DeepSpeed's configuration."""

    deepspeed: bool = refused(True, "Train with the DeepSpeed engine.", "there is no other engine; remove the key")
    train_batch_size: int | None = supported(
        None,
        "Samples per step over all processes: micro batch x accumulation steps x data-parallel size.",
        limit=at_least(1),
        to_deepspeed=True,
        transfer=shifts(
            "the best learning rate depends on the batch size: for Adam it first rises and then falls",
            "Li et al. 2024, arXiv:2405.14578",
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    train_micro_batch_size_per_gpu: int | None = supported(
        None,
        "Samples per process and micro batch. One of the three batch sizes can be omitted.",
        limit=at_least(1),
        to_deepspeed=True,
        transfer=FREE,
        recipe=(SEARCH,),
    )
    gradient_accumulation_steps: int | None = supported(
        None,
        "Micro batches per step. If unset, derived from the other two batch sizes, else 1.",
        limit=at_least(1),
        aliases=("gas",),
        to_deepspeed=True,
        transfer=FREE,
    )
    optimizer: dict[str, Any] | None = supported(
        None,
        "{type: Adam | AdamW | SGD, params: {lr, betas, eps, weight_decay, momentum, nesterov}}.",
        section=OptimizerSection,
        transfer=COMBINED,
    )
    scheduler: dict[str, Any] | None = refused(
        None,
        "DeepSpeed's learning-rate scheduler.",
        "use lr_decay_style, warmup and min_lr",
        neutral=({},),
    )
    fp32_allreduce: bool = supported(
        False,
        "Average gradients in fp32. Same as communication_data_type: fp32.",
        same_as="communication_data_type",
        transfer=FREE,
    )
    prescale_gradients: bool = supported(
        False, "Divide gradients before the sum over processes.", to_deepspeed=True, transfer=FREE
    )
    gradient_predivide_factor: float = supported(
        1.0,
        "With prescale_gradients: the factor by which gradients are divided before the sum.",
        limit=above(0),
        to_deepspeed=True,
        transfer=FREE,
    )
    sparse_gradients: bool = refused(
        False, "Use sparse embedding gradients.", "embedding gradients are dense; remove the key"
    )
    fp16: dict[str, Any] | None = supported(
        None,
        "{enabled, loss_scale, loss_scale_window, initial_scale_power, hysteresis, min_loss_scale,"
        " consecutive_hysteresis, auto_cast}.",
        section=Fp16Section,
        transfer=FREE,
    )
    bf16: dict[str, Any] | None = supported(
        None, "{enabled: true} trains in bfloat16 with fp32 master weights.", section=Bf16Section, transfer=FREE
    )
    amp: dict[str, Any] | None = refused(
        None, "Apex mixed precision.", "Apex amp is not supported; use bf16", neutral=_OFF
    )
    torch_autocast: dict[str, Any] | None = supported(
        None,
        "DeepSpeed's torch_autocast section: {enabled, dtype, lower_precision_safe_modules}.",
        section=TorchAutocastSection,
        to_deepspeed=True,
        transfer=PRECISION,
    )
    gradient_clipping: float = supported(
        1.0, "Maximum norm of the gradient. 0 disables clipping.", limit=at_least(0), to_deepspeed=True
    )
    zero_optimization: dict[str, Any] | None = supported(
        None, "DeepSpeed's zero_optimization section.", section=ZeroSection, transfer=FREE
    )
    curriculum_learning: dict[str, Any] | None = refused(
        None, "DeepSpeed's curriculum learning.", _NO_CURRICULUM, neutral=_OFF
    )
    curriculum_seqlen: int = refused(0, "Current sequence length of the curriculum.", _NO_CURRICULUM)
    steps_per_print: int = supported(
        10, "Number of steps between DeepSpeed's log lines.", limit=at_least(1), to_deepspeed=True, transfer=FREE
    )
    wall_clock_breakdown: bool = supported(
        False, "Let DeepSpeed measure the time of forward, backward and step.", to_deepspeed=True, transfer=FREE
    )
    dump_state: bool = supported(False, "Let DeepSpeed print its state at startup.", to_deepspeed=True, transfer=FREE)
    flops_profiler: dict[str, Any] | None = supported(
        None, "DeepSpeed's flops_profiler section.", section=FlopsProfilerSection, to_deepspeed=True, transfer=FREE
    )
    communication_data_type: str | None = supported(
        None, "Data type in which gradients are communicated: fp32, fp16 or bf16.", to_deepspeed=True, transfer=FREE
    )
    autotuning: dict[str, Any] | None = refused(
        None, "DeepSpeed's autotuning section.", feature="autotuning", neutral=_OFF
    )
    activation_checkpointing: dict[str, Any] | None = refused(
        None,
        "DeepSpeed's activation_checkpointing section.",
        "activations are recomputed with PyTorch; use checkpoint_activations and checkpoint_num_layers",
        neutral=({},),
    )
    sparse_attention: dict[str, Any] | None = refused(
        None, "Sparse attention.", neutral=({},), feature="sparse_attention"
    )
    data_efficiency: dict[str, Any] | None = refused(
        None,
        "DeepSpeed's data sampling.",
        "not supported, because the data order must be resumable; without the key the samples have a random order",
        neutral=_OFF,
    )
    tensorboard: dict[str, Any] | None = refused(None, "DeepSpeed's TensorBoard monitor.", _OWN_MONITORS, neutral=_OFF)
    wandb: dict[str, Any] | None = refused(None, "DeepSpeed's wandb monitor.", _OWN_MONITORS, neutral=_OFF)
    csv_monitor: dict[str, Any] | None = refused(None, "DeepSpeed's CSV monitor.", _OWN_MONITORS, neutral=_OFF)
    elasticity: dict[str, Any] | None = refused(
        None,
        "Elastic training.",
        "elastic training is not supported; without the key the batch size is the same at every step",
        neutral=_OFF,
    )
    comms_logger: dict[str, Any] | None = supported(
        None, "DeepSpeed's comms_logger section.", section=CommsLoggerSection, to_deepspeed=True, transfer=FREE
    )
    compression_training: dict[str, Any] | None = refused(
        None,
        "DeepSpeed's compression.",
        "compression is not supported; without the key the weights are neither pruned nor quantised",
        neutral=({},),
    )
    checkpoint: dict[str, Any] | None = supported(
        None, "DeepSpeed's checkpoint section.", section=CheckpointSection, to_deepspeed=True, transfer=FREE
    )
    data_types: dict[str, Any] | None = supported(
        None,
        "DeepSpeed's data_types section: {grad_accum_dtype}.",
        section=DataTypesSection,
        to_deepspeed=True,
        transfer=FREE,
    )
    deepspeed_extra_args: dict[str, Any] | None = supported(
        None,
        "Additional options that are passed to DeepSpeed unchanged. They cannot repeat a top-level key.",
        section=DeepspeedExtraSection,
        transfer=FREE,
    )


@dataclass(kw_only=True)
class NeoXArgsDeepspeedRunner:
    """Options of DeepSpeed's launcher, used by deepy.py."""

    hostfile: str | None = supported(None, "File with one line `host slots=N` per host.", transfer=FREE)
    include: str | None = supported(
        None, "Hosts and slots to use, for example host-0@host-1:0,2.", limit=SELECTION, transfer=FREE
    )
    exclude: str | None = supported(None, "Hosts and slots to exclude.", limit=SELECTION, transfer=FREE)
    num_nodes: int = supported(
        -1, "Number of hosts to use, from the top of the hostfile. -1 uses all.", limit=at_least(-1), transfer=FREE
    )
    num_gpus: int | None = supported(
        None, "Processes per host, also on CPU hosts. If unset, one per device.", limit=at_least(1), transfer=FREE
    )
    master_port: int = supported(
        29500, "Port of the first host. If unset, a single host uses a free port.", limit=Range(1, 65535), transfer=FREE
    )
    master_addr: str | None = supported(None, "Address of the first host.", limit=ADDRESS, transfer=FREE)
    launcher: Literal["pdsh", "openmpi", "mpich", "mvapich", "slurm"] = supported(
        "pdsh", "Launcher for processes on other hosts.", transfer=FREE
    )
    force_multi: bool = supported(False, "Use the multi-node launcher even for a single remote host.", transfer=FREE)
    autotuning_run: str | None = refused(None, "DeepSpeed's autotuner.", feature="autotuning")
    no_ssh_check: bool = supported(False, "Do not test the ssh connection before launching.", transfer=FREE)
    export_variables: list[str] | None = supported(
        None,
        "Names of environment variables that workers on other hosts get from the launcher's. WANDB_*, NCCL*, OMP_* and "
        "other libraries' come by themselves, and so do the lines of .deepspeed_env. No value is in a command line.",
        limit=Items(str, Pattern(r"[A-Za-z_][A-Za-z0-9_]*", "names of environment variables")),
        transfer=FREE,
    )
    comment: str | None = supported(None, "Comment of the job (launcher slurm only).", transfer=FREE)
    account: str | None = supported(None, "Account of the job (launcher slurm only).", transfer=FREE)
