"""Keys that GPT-NeoX or its published files had formerly, each with what to write instead."""

from __future__ import annotations

_CAPACITY = "no token is dropped, so experts have no capacity; remove the key"
_SPLIT = "model_parallel_size splits every expert over the tensor-parallel ranks; remove the key"
_ROUTER = "GPT-NeoX removed it with its former mixture of experts; its present one has the keys moe_*"

# Former keys without an exact replacement under another name; `Key.aliases` has the others.
GONE = {
    "apply_residual_connection_post_layernorm": "GPT-NeoX removed it; residuals start before the norm",
    "attention_type": "num_kv_heads alone selects grouped-query attention; remove the key",
    "autotuning_config": "DeepSpeed's autotuning is not supported; remove the section",
    "create_moe_param_group": _ROUTER,
    "decay_lr_to": "use min_lr, an absolute rate instead of a share of lr",
    "detect_nvlink_pairs": "GPT-NeoX removed it; CUDA_VISIBLE_DEVICES sets the order of devices",
    "dropout": "use hidden_dropout and attention_dropout",
    "enable_expert_tensor_parallelism": _SPLIT,
    "expert_interval": "use moe_expert_interval",
    "geglu": "use activation: geglu",
    "genfile": "use sample_output_file",
    "gptj_residual": "use gpt_j_residual",
    "greedy": "use temperature: 0",
    "label_data_paths": "use train_label_data_paths, with valid_label_data_paths and test_label_data_paths",
    "max_lr": "use lr",
    "max_tokens": "use maximum_tokens",
    "mlp_type": "GPT-NeoX removed it; for `llama` set activation: swiglu",
    "moe_eval_capacity_factor": _CAPACITY,
    "moe_expert_parallel_size": _SPLIT,
    "moe_glu": "use activation: swiglu or geglu, which also applies to the experts",
    "moe_min_capacity": _CAPACITY,
    "moe_token_dropping": _CAPACITY,
    "moe_train_capacity_factor": _CAPACITY,
    "moe_type": _ROUTER,
    "moe_use_residual": _ROUTER,
    "mup_save": "use save_base_shapes",
    "num_experts": "use moe_num_experts",
    "openai_gelu": "use activation: gelu",
    "out_seq_length": "use maximum_tokens",
    "reset_attention_mask": "GPT-NeoX removed it; attention covers the whole sample, also across documents",
    "reset_position_ids": "GPT-NeoX removed it; positions count from the start of the sample",
    "save_iters": "use extra_save_iters for single steps and checkpoint_factor for regular ones",
    "slurm_comment": "use comment",
    "sparsity": "use attention_config; sparse attention is not supported",
    "test_data_path": "use test_data_paths, a list",
    "train_data_path": "use train_data_paths, a list",
    "use_tutel": _ROUTER,
    "valid_data_path": "use valid_data_paths, a list",
    "vocab_size": "the tokenizer sets it; to set the number of rows of the embedding use padded_vocab_size",
    "warmup_iters": "use warmup, a share of the training steps",
    "zero_allow_untested_optimizer": "the trainer always sets it; remove the key",
}
