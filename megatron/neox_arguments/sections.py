"""Keys inside nested sections, and the top-level keys that say the same."""

# Top-level key: its name in the zero_optimization section, default.
ZERO_DEFAULTS = {
    "zero_stage": ("stage", 0),
    "zero_reduce_scatter": ("reduce_scatter", True),
    "zero_contiguous_gradients": ("contiguous_gradients", False),
    "zero_reduce_bucket_size": ("reduce_bucket_size", 500_000_000),
    "zero_allgather_bucket_size": ("allgather_bucket_size", 500_000_000),
}
# Top-level key: its name in the fp16 section, default.
LOSS_SCALING = {
    "loss_scale": ("loss_scale", None),
    "loss_scale_window": ("loss_scale_window", 1000.0),
    "hysteresis": ("hysteresis", 2),
    "min_scale": ("min_loss_scale", 1.0),
}

# Known keys of each section; DeepSpeed would stop on others, or pass over them in silence.
SECTION_KEYS = {
    "optimizer": ("type", "params"),
    "optimizer.params": ("lr", "betas", "eps", "weight_decay", "momentum", "nesterov"),
    # fp16 (repeated) and type are GPT-NeoX's; they are not handed to DeepSpeed.
    "fp16": (
        "fp16", "type", "enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window",
        "hysteresis", "consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads",
    ),
    "bf16": (
        "enabled", "immediate_grad_update", "check_grad_overflow", "bf16_master_weights_and_grads",
        "bf16_optimizer_states",
    ),
    "zero_optimization": (
        "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions",
        "allgather_bucket_size", "overlap_comm", "load_from_fp32_weights", "elastic_checkpoint",
        "round_robin_gradients", "ignore_unused_parameters", "cpu_offload", "use_multi_rank_bucket_allreduce",
        "offload_optimizer", "offload_param", "sub_group_size", "prefetch_bucket_size", "param_persistence_threshold",
        "model_persistence_threshold", "max_live_parameters", "max_reuse_distance",
        "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size", "stage3_gather_16bit_weights_on_model_save",
        "stage3_model_persistence_threshold",
    ),
    "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
}  # fmt: skip
