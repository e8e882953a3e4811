"""Every configuration key's part in the transfer of hyperparameters, in one place.

A key has one class: INDIFFERENT (changes nothing that is trained), WIDTH (may grow from proxy to target), TUNED (is
carried over), SHIFTS (warned of), and all others, which must be equal.
"""

from __future__ import annotations

from megatron.neox_arguments.fields import GROUPS

_WHOLE_GROUPS = (
    "NeoXArgsLogging",
    "NeoXArgsTextgen",
    "NeoXArgsDeepspeedRunner",
    "NeoXArgsParallelism",  # losses do not depend on the layout
    "NeoXArgsPosttraining",  # refused by the configuration itself
    "NeoXArgsMoE",
)
_SINGLE = (
    # checkpoints, evaluation, and the work of entry scripts
    *("save", "load", "config_files", "checkpoint_scale", "checkpoint_factor", "extra_save_iters", "no_save_rng"),
    *("keep_last_n_checkpoints", "eval_iters", "eval_interval", "exit_interval", "override_lr_scheduler"),
    *("use_checkpoint_lr_scheduler", "user_script", "iteration", "do_train", "do_valid", "do_test", "no_load_rng"),
    *("coord_check", "coord_check_widths", "coord_check_seeds", "coord_check_lr", "save_base_shapes", "seed"),
    *("mup_width_scale", "base_shapes_file", "no_load_optim"),
    # how the same global batch and the same update are computed
    *("batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "num_workers", "use_shared_fs"),
    *("zero_stage", "zero_reduce_scatter", "zero_contiguous_gradients", "zero_reduce_bucket_size"),
    *("zero_allgather_bucket_size", "zero_optimization", "optimizer_implementation", "checkpoint_activations"),
    *("checkpoint_num_layers", "steps_per_print", "wall_clock_breakdown", "dump_state", "flops_profiler"),
    *("comms_logger", "checkpoint", "deepspeed_extra_args", "communication_data_type", "fp32_allreduce"),
    *("prescale_gradients", "gradient_predivide_factor", "distributed_backend", "local_rank", "rank"),
    *("deepspeed_mpi", "deepspeed_slurm", "global_num_gpus", "hysteresis", "dynamic_loss_scale", "loss_scale"),
    *("loss_scale_window", "min_scale", "data_types"),
    # said again by other keys: precision, gradient_clipping
    *("fp16", "bf16", "torch_autocast", "clip_grad"),
    # rows that padding adds take no part
    *("make_vocab_size_divisible_by", "padded_vocab_size"),
    # follow from seq_length and the layout of positions; a learned table is judged by seq_length
    "max_position_embeddings",
)
INDIFFERENT = frozenset(_SINGLE).union(
    *(group.__dataclass_fields__ for group in GROUPS if group.__name__ in _WHOLE_GROUPS)
)
WIDTHS = frozenset({"hidden_size", "num_attention_heads", "num_kv_heads", "intermediate_size"})
BASE = frozenset(
    {
        "mup_base_hidden_size",
        "mup_base_num_attention_heads",
        "mup_base_num_kv_heads",
        "mup_base_intermediate_size",
        "mup_base_num_layers",
    }
)
TUNED = frozenset(
    {
        "lr",
        "min_lr",
        "mup_init_scale",
        "mup_attn_temp",
        "mup_output_temp",
        "mup_embedding_mult",
        "mup_rp_embedding_mult",
        "init_method_std",
    }
)
