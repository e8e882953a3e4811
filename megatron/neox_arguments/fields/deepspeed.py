"""What DeepSpeed reads: its configuration and its launcher's options."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import refused, supported

_OWN_MONITORS = "metrics go to metrics.jsonl always, and to wandb and TensorBoard by use_wandb and tensorboard_dir"
_NO_TUNING = "DeepSpeed's autotuning is not supported; remove the key"
_OFF: tuple[dict, ...] = ({}, {"enabled": False})


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDeepspeedConfig:
    """Batch sizes and sections of the DeepSpeed configuration."""

    deepspeed: bool = refused(True, "Train on the DeepSpeed engine.", "there is no other engine; remove the key")
    train_batch_size: int | None = supported(
        None, "Samples of a step over all processes: micro batch x accumulation x data-parallel size."
    )
    train_micro_batch_size_per_gpu: int | None = supported(
        None, "Samples that one process takes at a time. One of the three batch sizes may be missing."
    )
    gradient_accumulation_steps: int | None = supported(
        None, "Micro batches of a step. Unset: follows from the other two, else 1."
    )
    optimizer: dict | None = supported(
        None, "{type: Adam | AdamW | SGD, params: {lr, betas, eps, weight_decay, momentum, nesterov}}."
    )
    scheduler: dict | None = refused(
        None,
        "DeepSpeed's schedule.",
        "the schedule is set by lr_decay_style, warmup and min_lr",
        neutral=({},),
    )
    fp32_allreduce: bool = supported(False, "Average gradients in fp32; same as communication_data_type: fp32.")
    prescale_gradients: bool = supported(False, "Divide gradients before summing them over processes.")
    gradient_predivide_factor: float = supported(1.0, "With prescale_gradients: part of the division that comes first.")
    sparse_gradients: bool = refused(
        False, "Sparse embedding gradients.", "embedding gradients are dense; remove the key"
    )
    fp16: dict | None = supported(
        None,
        "{enabled, loss_scale, loss_scale_window, initial_scale_power, hysteresis, min_loss_scale,"
        " consecutive_hysteresis, auto_cast}.",
    )
    bf16: dict | None = supported(None, "{enabled: true} trains in bfloat16 with fp32 master weights.")
    amp: dict | None = refused(None, "Apex mixed precision.", "Apex amp is not supported; use bf16", neutral=_OFF)
    torch_autocast: dict | None = supported(
        None, "DeepSpeed's torch_autocast section: {enabled, dtype, lower_precision_safe_modules}."
    )
    gradient_clipping: float = supported(1.0, "Largest norm of the gradient; 0: no clipping.")
    zero_optimization: dict | None = supported(None, "DeepSpeed's zero_optimization section.")
    curriculum_learning: dict | None = refused(
        None, "DeepSpeed's curriculum.", "curriculum learning is not supported; remove the key", neutral=_OFF
    )
    curriculum_seqlen: int = refused(0, "Its current length.", "curriculum learning is not supported; remove the key")
    steps_per_print: int = supported(10, "Steps between DeepSpeed's own log lines.")
    wall_clock_breakdown: bool = supported(False, "DeepSpeed times forward, backward and step.")
    dump_state: bool = supported(False, "DeepSpeed prints its state at start.")
    flops_profiler: dict | None = supported(None, "DeepSpeed's flops_profiler section.")
    communication_data_type: str | None = supported(None, "fp32, fp16 or bf16: type of gradients on the wire.")
    autotuning: dict | None = refused(None, "DeepSpeed's autotuning section.", _NO_TUNING, neutral=_OFF)
    activation_checkpointing: dict | None = refused(
        None,
        "DeepSpeed's activation_checkpointing section.",
        "recomputation is PyTorch's; use checkpoint_activations and checkpoint_num_layers",
        neutral=({},),
    )
    sparse_attention: dict | None = refused(
        None, "Sparse attention.", "sparse attention is not supported; remove the key", neutral=({},)
    )
    data_efficiency: dict | None = refused(
        None,
        "DeepSpeed's data sampling.",
        "not supported: the loader's order must be resumable",
        neutral=_OFF,
    )
    tensorboard: dict | None = refused(None, "DeepSpeed's TensorBoard monitor.", _OWN_MONITORS, neutral=_OFF)
    wandb: dict | None = refused(None, "DeepSpeed's wandb monitor.", _OWN_MONITORS, neutral=_OFF)
    csv_monitor: dict | None = refused(None, "DeepSpeed's CSV monitor.", _OWN_MONITORS, neutral=_OFF)
    elasticity: dict | None = refused(
        None,
        "Elastic training.",
        "the batch size must not change while training; remove the key",
        neutral=_OFF,
    )
    comms_logger: dict | None = supported(None, "DeepSpeed's comms_logger section.")
    compression_training: dict | None = refused(
        None, "DeepSpeed's compression.", "compression is not supported; remove the key", neutral=({},)
    )
    checkpoint: dict | None = supported(None, "DeepSpeed's checkpoint section.")
    data_types: dict | None = supported(None, "DeepSpeed's data_types section: {grad_accum_dtype}.")
    deepspeed_extra_args: dict | None = supported(
        None, "Further sections for DeepSpeed, passed as they are; must not repeat a key above."
    )


@dataclass(frozen=True, kw_only=True)
class NeoXArgsDeepspeedRunner:
    """Options of DeepSpeed's launcher, for deepy.py."""

    hostfile: str | None = supported(None, "File with a line `host slots=N` for each host.")
    include: str | None = supported(None, "Hosts and slots to use, such as host-0@host-1:0,2.")
    exclude: str | None = supported(None, "Hosts and slots to leave out.")
    num_nodes: int = supported(-1, "Number of hosts, from the top of the hostfile; -1: all.")
    num_gpus: int | None = supported(None, "Processes on each host (on CPU hosts too); unset: its devices.")
    master_port: int = supported(29500, "Port of the first host.")
    master_addr: str | None = supported(None, "Address of the first host.")
    launcher: Literal["pdsh", "openmpi", "mvapich", "slurm"] = supported("pdsh", "How processes reach other hosts.")
    force_multi: bool = supported(False, "Use the launcher even for a single remote host.")
    autotuning_run: str | None = refused(None, "DeepSpeed's autotuner.", _NO_TUNING)
    no_ssh_check: bool = supported(False, "Do not try ssh before launching.")
    comment: str | None = supported(None, "launcher slurm: comment of the job.")
    account: str | None = supported(None, "launcher slurm: account of the job.")
