"""What DeepSpeed reads: its configuration and its launcher's options."""

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
from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import Range, above, at_least
from megatron.neox_arguments.transfer import COMBINED, FAMILY, FREE, PRECISION, SEARCH, SIZE_LADDER, shifts

_OWN_MONITORS = "metrics go to metrics.jsonl always, and to wandb and TensorBoard by use_wandb and tensorboard_dir"
_NO_TUNING = "DeepSpeed's autotuning is not supported; remove the key"
_OFF: tuple[dict[str, Any], ...] = ({}, {"enabled": False})


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDeepspeedConfig:
    """Batch sizes and sections of the DeepSpeed configuration."""

    deepspeed: bool = refused(True, "Train on the DeepSpeed engine.", "there is no other engine; remove the key")
    train_batch_size: int | None = supported(
        None,
        "Samples of a step over all processes: micro batch x accumulation x data-parallel size.",
        limit=at_least(1),
        to_deepspeed=True,
        transfer=shifts(
            "the best learning rate depends on the batch size: for Adam it rises, then falls again",
            "Li et al. 2024, arXiv:2405.14578",
        ),
        recipe=(FAMILY, SIZE_LADDER),
    )
    train_micro_batch_size_per_gpu: int | None = supported(
        None,
        "Samples that one process takes at a time. One of the three batch sizes may be missing.",
        limit=at_least(1),
        to_deepspeed=True,
        transfer=FREE,
        recipe=(SEARCH,),
    )
    gradient_accumulation_steps: int | None = supported(
        None,
        "Micro batches of a step. Unset: follows from the other two, else 1.",
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
        "DeepSpeed's schedule.",
        "the schedule is set by lr_decay_style, warmup and min_lr",
        neutral=({},),
    )
    fp32_allreduce: bool = supported(
        False,
        "Average gradients in fp32; same as communication_data_type: fp32.",
        same_as="communication_data_type",
        transfer=FREE,
    )
    prescale_gradients: bool = supported(
        False, "Divide gradients before summing them over processes.", to_deepspeed=True, transfer=FREE
    )
    gradient_predivide_factor: float = supported(
        1.0,
        "With prescale_gradients: part of the division that comes first.",
        limit=above(0),
        to_deepspeed=True,
        transfer=FREE,
    )
    sparse_gradients: bool = refused(
        False, "Sparse embedding gradients.", "embedding gradients are dense; remove the key"
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
        1.0, "Largest norm of the gradient; 0: no clipping.", limit=at_least(0), to_deepspeed=True
    )
    zero_optimization: dict[str, Any] | None = supported(
        None, "DeepSpeed's zero_optimization section.", section=ZeroSection, transfer=FREE
    )
    curriculum_learning: dict[str, Any] | None = refused(
        None, "DeepSpeed's curriculum.", "curriculum learning is not supported; remove the key", neutral=_OFF
    )
    curriculum_seqlen: int = refused(0, "Its current length.", "curriculum learning is not supported; remove the key")
    steps_per_print: int = supported(
        10, "Steps between DeepSpeed's own log lines.", limit=at_least(1), to_deepspeed=True, transfer=FREE
    )
    wall_clock_breakdown: bool = supported(
        False, "DeepSpeed times forward, backward and step.", to_deepspeed=True, transfer=FREE
    )
    dump_state: bool = supported(False, "DeepSpeed prints its state at start.", to_deepspeed=True, transfer=FREE)
    flops_profiler: dict[str, Any] | None = supported(
        None, "DeepSpeed's flops_profiler section.", section=FlopsProfilerSection, to_deepspeed=True, transfer=FREE
    )
    communication_data_type: str | None = supported(
        None, "fp32, fp16 or bf16: type of gradients on the wire.", to_deepspeed=True, transfer=FREE
    )
    autotuning: dict[str, Any] | None = refused(None, "DeepSpeed's autotuning section.", _NO_TUNING, neutral=_OFF)
    activation_checkpointing: dict[str, Any] | None = refused(
        None,
        "DeepSpeed's activation_checkpointing section.",
        "recomputation is PyTorch's; use checkpoint_activations and checkpoint_num_layers",
        neutral=({},),
    )
    sparse_attention: dict[str, Any] | None = refused(
        None, "Sparse attention.", "sparse attention is not supported; remove the key", neutral=({},)
    )
    data_efficiency: dict[str, Any] | None = refused(
        None,
        "DeepSpeed's data sampling.",
        "not supported: the loader's order must be resumable",
        neutral=_OFF,
    )
    tensorboard: dict[str, Any] | None = refused(None, "DeepSpeed's TensorBoard monitor.", _OWN_MONITORS, neutral=_OFF)
    wandb: dict[str, Any] | None = refused(None, "DeepSpeed's wandb monitor.", _OWN_MONITORS, neutral=_OFF)
    csv_monitor: dict[str, Any] | None = refused(None, "DeepSpeed's CSV monitor.", _OWN_MONITORS, neutral=_OFF)
    elasticity: dict[str, Any] | None = refused(
        None,
        "Elastic training.",
        "the batch size must not change while training; remove the key",
        neutral=_OFF,
    )
    comms_logger: dict[str, Any] | None = supported(
        None, "DeepSpeed's comms_logger section.", section=CommsLoggerSection, to_deepspeed=True, transfer=FREE
    )
    compression_training: dict[str, Any] | None = refused(
        None, "DeepSpeed's compression.", "compression is not supported; remove the key", neutral=({},)
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
        "Further sections for DeepSpeed, passed as they are; must not repeat a key above.",
        section=DeepspeedExtraSection,
        transfer=FREE,
    )


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDeepspeedRunner:
    """Options of DeepSpeed's launcher, for deepy.py."""

    hostfile: str | None = supported(None, "File with a line `host slots=N` for each host.", transfer=FREE)
    include: str | None = supported(None, "Hosts and slots to use, such as host-0@host-1:0,2.", transfer=FREE)
    exclude: str | None = supported(None, "Hosts and slots to leave out.", transfer=FREE)
    num_nodes: int = supported(
        -1, "Number of hosts, from the top of the hostfile; -1: all.", limit=at_least(-1), transfer=FREE
    )
    num_gpus: int | None = supported(
        None, "Processes on each host (on CPU hosts too); unset: its devices.", limit=at_least(1), transfer=FREE
    )
    master_port: int = supported(29500, "Port of the first host.", limit=Range(1, 65535), transfer=FREE)
    master_addr: str | None = supported(None, "Address of the first host.", transfer=FREE)
    launcher: Literal["pdsh", "openmpi", "mvapich", "slurm"] = supported(
        "pdsh", "How processes reach other hosts.", transfer=FREE
    )
    force_multi: bool = supported(False, "Use the launcher even for a single remote host.", transfer=FREE)
    autotuning_run: str | None = refused(None, "DeepSpeed's autotuner.", _NO_TUNING)
    no_ssh_check: bool = supported(False, "Do not try ssh before launching.", transfer=FREE)
    comment: str | None = supported(None, "launcher slurm: comment of the job.", transfer=FREE)
    account: str | None = supported(None, "launcher slurm: account of the job.", transfer=FREE)
