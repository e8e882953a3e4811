"""Keys inside sections: GPT-NeoX's optimizer section and the sections of DeepSpeed's configuration.

A key with a top-level equivalent (`same_as`), for example optimizer.params.lr, is declared at the top level and not
here. DeepSpeed's sections are declared here because reading a configuration does not import DeepSpeed. An unknown or
mistyped key is therefore reported as a ConfigError that names it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import PROBABILITY_BELOW_ONE, SHARE, Items, Range, above, at_least

_NO_NVME = "offload to NVMe is not supported; use device cpu"
_PRECISION = "precision sets the data type; remove the key"
_OWN_WRITER = "the trainer writes and verifies checkpoints itself; remove the key"
_SET_HERE = "the trainer sets it; remove the key"
_NO_FEATURE = "not supported; remove the key"


@dataclass(frozen=True, kw_only=True)
class OptimizerParams:
    """optimizer.params. lr and weight_decay are declared as top-level keys."""

    betas: list[float] = supported([0.9, 0.999], "Adam's decay rates.", limit=Items(float, PROBABILITY_BELOW_ONE, 2))
    eps: float = supported(1e-8, "Adam's epsilon.", limit=at_least(0))
    momentum: float = supported(0.0, "SGD's momentum.", limit=at_least(0))
    nesterov: bool = supported(False, "Use Nesterov momentum in SGD.")


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """optimizer. Its type is declared as optimizer_type."""

    params: dict[str, Any] | None = supported(None, "The optimizer's hyperparameters.", section=OptimizerParams)


@dataclass(frozen=True, kw_only=True)
class RopeScalingSection:
    """rope_scaling."""

    rope_type: Literal["linear", "dynamic", "llama3"] | None = supported(
        None,
        "linear divides every position by factor. dynamic raises the base for contexts longer than"
        " original_max_position_embeddings. llama3 divides only the low frequencies.",
    )
    factor: float | None = supported(None, "Ratio of the new context length to the original one.", limit=at_least(1))
    original_max_position_embeddings: int | None = supported(
        None,
        "Context length of the pretraining. If unset, max_position_embeddings; llama3 needs a value.",
        limit=at_least(1),
    )
    low_freq_factor: float = supported(
        1.0, "llama3: wavelengths above the original context length divided by this are stretched.", limit=above(0)
    )
    high_freq_factor: float = supported(
        4.0, "llama3: wavelengths below the original context length divided by this are kept.", limit=above(0)
    )


@dataclass(frozen=True, kw_only=True)
class Fp16Section:
    """fp16. loss_scale, loss_scale_window, hysteresis and min_loss_scale are declared as top-level keys."""

    fp16: bool = supported(True, "GPT-NeoX repeats the section's name here. The key has no effect.")
    type: Literal["fp16", "bfloat16", "bf16"] = supported(
        "fp16", "bfloat16 selects bfloat16; GPT-NeoX's older spelling."
    )
    enabled: bool = supported(False, "Train in fp16.")
    auto_cast: bool = supported(False, "Cast the inputs to fp16.")
    initial_scale_power: int = supported(16, "The initial dynamic loss scale is 2 to this power.", limit=Range(0, 127))
    consecutive_hysteresis: bool = supported(False, "Restore the hysteresis after a step without overflow.")
    fp16_master_weights_and_grads: bool = supported(False, "Keep master weights and gradients in fp16.")


@dataclass(frozen=True, kw_only=True)
class Bf16Section:
    """bf16."""

    enabled: bool = supported(False, "Train in bfloat16.")
    immediate_grad_update: bool = supported(False, "Apply gradients as they are produced.")
    check_grad_overflow: bool = refused(
        True,
        "Make no update with gradients that are not finite.",
        "such an update destroys the model; nonfinite_policy says what happens instead",
    )
    bf16_master_weights_and_grads: bool = supported(False, "Keep master weights and gradients in bfloat16.")
    bf16_optimizer_states: bool = supported(False, "Keep the optimizer's states in bfloat16.")


@dataclass(frozen=True, kw_only=True)
class TorchAutocastSection:
    """torch_autocast."""

    enabled: bool = supported(False, "Use PyTorch's automatic mixed precision.")
    dtype: Literal["bfloat16", "bf16", "float16", "fp16"] = supported("bfloat16", "Data type of the lower precision.")
    lower_precision_safe_modules: list[str] = supported([], "Modules whose gradients are reduced in that data type.")


@dataclass(frozen=True, kw_only=True)
class OffloadOptimizerSection:
    """zero_optimization.offload_optimizer."""

    device: Literal["none", "cpu", "nvme"] = supported(
        "none", "Device of the optimizer states.", refuse={"nvme": _NO_NVME}
    )
    pin_memory: bool = supported(True, "Use page-locked memory.")
    ratio: float = supported(1.0, "Share of the parameters that are updated on the CPU (ZeRO 3).", limit=SHARE)
    fast_init: bool = supported(False, "Use fast initialisation of the buffers.")
    buffer_count: int = supported(4, "Number of buffers for optimizer states.", limit=at_least(0))
    nvme_path: str | None = refused(None, "Folder on the NVMe device.", _NO_NVME)
    pipeline_read: bool = refused(False, "Overlap reads from NVMe.", _NO_NVME)
    pipeline_write: bool = refused(False, "Overlap writes to NVMe.", _NO_NVME)


@dataclass(frozen=True, kw_only=True)
class OffloadParamSection:
    """zero_optimization.offload_param."""

    device: Literal["none", "cpu", "nvme"] = supported("none", "Device of the weights.", refuse={"nvme": _NO_NVME})
    pin_memory: bool = supported(True, "Use page-locked memory.")
    buffer_count: int = supported(5, "Number of buffers for weights.", limit=at_least(0))
    buffer_size: int = supported(100_000_000, "Number of elements per buffer.", limit=at_least(0))
    max_in_cpu: int = supported(1_000_000_000, "Number of elements kept in CPU memory.", limit=at_least(0))
    nvme_path: str | None = refused(None, "Folder on the NVMe device.", _NO_NVME)


@dataclass(frozen=True, kw_only=True)
class ZeroSection:
    """zero_optimization. stage and four more keys are declared as the top-level keys zero_*."""

    allgather_partitions: bool = supported(True, "Gather updated weights by all-gather instead of broadcasts.")
    overlap_comm: bool | None = supported(None, "Reduce gradients while the backward pass runs.")
    load_from_fp32_weights: bool = supported(True, "On resume, load master weights from the fp32 copy.")
    elastic_checkpoint: bool = supported(False, "Write DeepSpeed's former elastic checkpoints.")
    round_robin_gradients: bool = supported(
        False, "Stages 1 and 2: distribute the copying of gradients to the CPU over ranks."
    )
    ignore_unused_parameters: bool = supported(True, "Stage 2: accept parameters without a gradient.")
    cpu_offload: bool | None = supported(None, "Former name of offload_optimizer: {device: cpu}.")
    use_multi_rank_bucket_allreduce: bool = supported(True, "Combine the buckets of several ranks.")
    offload_optimizer: dict[str, Any] | None = supported(
        None, "Offload the optimizer states.", section=OffloadOptimizerSection
    )
    offload_param: dict[str, Any] | None = supported(
        None, "Offload the weights (stage 3).", section=OffloadParamSection
    )
    sub_group_size: int = supported(1_000_000_000, "Stage 3: number of elements per update.", limit=at_least(1))
    prefetch_bucket_size: int = supported(50_000_000, "Stage 3: number of elements to prefetch.", limit=at_least(0))
    param_persistence_threshold: int = supported(
        100_000, "Stage 3: smaller weights are not partitioned.", limit=at_least(0)
    )
    model_persistence_threshold: int = supported(
        2**63 - 1, "Stage 3: maximum number of unpartitioned elements.", limit=at_least(0)
    )
    max_live_parameters: int = supported(
        1_000_000_000, "Stage 3: maximum number of gathered elements per rank.", limit=at_least(0)
    )
    max_reuse_distance: int = supported(
        1_000_000_000, "Stage 3: keep weights that are reused within this distance.", limit=at_least(0)
    )
    stage3_prefetch_bucket_size: int = supported(50_000_000, "Same as prefetch_bucket_size.", limit=at_least(0))
    stage3_param_persistence_threshold: int = supported(
        100_000, "Same as param_persistence_threshold.", limit=at_least(0)
    )
    stage3_model_persistence_threshold: int = supported(
        2**63 - 1, "Same as model_persistence_threshold.", limit=at_least(0)
    )
    stage3_max_live_parameters: int = supported(1_000_000_000, "Same as max_live_parameters.", limit=at_least(0))
    stage3_max_reuse_distance: int = supported(1_000_000_000, "Same as max_reuse_distance.", limit=at_least(0))
    stage3_gather_16bit_weights_on_model_save: bool = supported(False, "Gather whole weights when DeepSpeed saves.")


@dataclass(frozen=True, kw_only=True)
class FlopsProfilerSection:
    """flops_profiler."""

    enabled: bool = supported(False, "Profile one step.")
    recompute_fwd_factor: float = supported(0.0, "Share of the forward pass that is recomputed.", limit=at_least(0))
    profile_step: int = supported(1, "Step to profile.", limit=at_least(1))
    module_depth: int = supported(-1, "Depth of the modules in the output. -1 shows all.", limit=at_least(-1))
    top_modules: int = supported(1, "Number of modules shown at each depth.", limit=at_least(1))
    detailed: bool = supported(True, "Print every module.")
    output_file: str | None = supported(None, "Output file. If unset, the console.")


@dataclass(frozen=True, kw_only=True)
class CommsLoggerSection:
    """comms_logger."""

    enabled: bool = supported(False, "Log communication.")
    verbose: bool = supported(False, "Log every operation.")
    prof_all: bool = supported(True, "Log all operations.")
    prof_ops: list[str] = supported([], "Operations to log if prof_all is false.")
    debug: bool = supported(False, "Include the calling function.")


@dataclass(frozen=True, kw_only=True)
class ParallelWriteSection:
    """checkpoint.parallel_write."""

    pipeline_stage: bool = supported(False, "With a pipeline, all data-parallel ranks write layers.")


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """checkpoint."""

    tag_validation: Literal["Ignore", "Warn", "Fail"] = supported("Warn", "Action if ranks save under different tags.")
    parallel_write: dict[str, Any] | None = supported(
        None, "How files are distributed over ranks.", section=ParallelWriteSection
    )
    load_universal: bool = refused(
        False, "Load a universal checkpoint.", "every checkpoint loads under any layout; remove the key"
    )
    use_node_local_storage: bool = refused(
        False, "Save on the local disk of every host.", "not supported; save to a file system that all hosts share"
    )
    checkpoint_serialization: bool = refused(True, "DeepSpeed's fast writer.", _OWN_WRITER)
    writer: dict[str, Any] | None = refused(None, "DeepSpeed's checkpoint writer.", _OWN_WRITER)


@dataclass(frozen=True, kw_only=True)
class DataTypesSection:
    """data_types."""

    grad_accum_dtype: Literal["fp32", "fp16", "bf16"] | None = supported(
        None, "Data type in which gradients are accumulated."
    )
    param_dtype: str | None = refused(None, "Data type of the weights.", _PRECISION)
    buffer_dtype: str | None = refused(None, "Data type of the buffers.", _PRECISION)
    keep_in_fp32_modules: Any = refused("auto", "Buffers that stay in fp32.", _PRECISION)


@dataclass(frozen=True, kw_only=True)
class ThroughputTimerSection:
    """deepspeed_extra_args.timers.throughput."""

    enabled: bool = supported(True, "Measure the time of each step.")
    synchronized: bool = supported(True, "Synchronise the device before each measurement.")


@dataclass(frozen=True, kw_only=True)
class TimersSection:
    """deepspeed_extra_args.timers."""

    throughput: dict[str, Any] | None = supported(None, "DeepSpeed's throughput timer.", section=ThroughputTimerSection)


@dataclass(frozen=True, kw_only=True)
class DeepspeedExtraSection:
    """deepspeed_extra_args: DeepSpeed's options that no other key sets."""

    memory_breakdown: bool = supported(False, "Print memory use around each phase.")
    disable_python_gc: bool = supported(False, "Disable Python's garbage collector.")
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = supported(
        None, "DeepSpeed's log level."
    )
    timers: dict[str, Any] | None = supported(None, "DeepSpeed's timers.", section=TimersSection)
    bfloat16: dict[str, Any] | None = refused(None, "Former name of bf16.", "use bf16")
    pipeline: dict[str, Any] | None = refused(None, "DeepSpeed's pipeline.", _SET_HERE)
    zero_allow_untested_optimizer: bool = refused(True, "Allow any optimizer with ZeRO.", _SET_HERE)
    zero_force_ds_cpu_optimizer: bool = refused(False, "Use DeepSpeed's CPU Adam for ZeRO offload.", _SET_HERE)
    gradient_allreduce_op: str = refused(
        "mean", "Reduce gradients by mean or sum.", "gradients are averaged; remove the key"
    )
    managed_gradient_accumulation: bool = refused(True, "Let DeepSpeed count the micro batches.", _SET_HERE)
    disable_allgather: bool = refused(False, "Disable all-gather.", "DeepSpeed does not read the key; remove it")
    dataloader_drop_last: bool = refused(
        False, "Drop the last batch of DeepSpeed's data loader.", "the trainer uses its own data loader; remove the key"
    )
    vocabulary_size: int | None = refused(None, "Size of the vocabulary.", "the tokenizer sets it; remove the key")
    seq_parallel_communication_data_type: str = refused("fp32", "Ulysses sequence parallelism.", _NO_FEATURE)
    sequence_parallel_size: int = refused(1, "Ulysses sequence parallelism.", "use sequence_parallel")
    tensor_parallel: dict[str, Any] | None = refused(None, "DeepSpeed's tensor parallelism.", "use model_parallel_size")
    expert_parallel: dict[str, Any] | None = refused(None, "DeepSpeed's expert parallelism.", _NO_FEATURE)
    use_data_before_expert_parallelism: bool = refused(False, "Order of expert groups.", _NO_FEATURE)
    compile: dict[str, Any] | None = refused(None, "DeepCompile.", _NO_FEATURE)
    hybrid_engine: dict[str, Any] | None = refused(None, "Alternate between training and generation.", _NO_FEATURE)
    weight_quantization: dict[str, Any] | None = refused(None, "Quantised weights.", _NO_FEATURE)
    aio: dict[str, Any] | None = refused(None, "Asynchronous I/O for NVMe.", _NO_NVME)
    datastates: dict[str, Any] | None = refused(None, "DataStates checkpoints.", _OWN_WRITER)
