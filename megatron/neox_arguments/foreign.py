"""Names of other trainers for keys of this one, for the message about an unknown key."""

from __future__ import annotations

NANO_GPT = {
    "n_layer": "num_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "block_size": "seq_length",
    "learning_rate": "lr",
    "max_iters": "train_iters",
    "beta1": "optimizer.params.betas",
    "beta2": "optimizer.params.betas",
    "grad_clip": "gradient_clipping",
    "out_dir": "save",
    "init_from": "load",
    "wandb_log": "use_wandb",
    "compile": "torch_compile",
    "dtype": "precision",
}

HUGGING_FACE = {
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "num_kv_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "hidden_act": "activation",
    "activation_function": "activation",
    "rope_theta": "rotary_emb_base",
    "rms_norm_eps": "rms_norm_epsilon",
    "layer_norm_eps": "layernorm_epsilon",
    "layer_norm_epsilon": "layernorm_epsilon",
    "resid_pdrop": "hidden_dropout",
    "attn_pdrop": "attention_dropout",
    "sliding_window": "sliding_window_width",
    "tie_word_embeddings": "no_weight_tying",
    "per_device_train_batch_size": "train_micro_batch_size_per_gpu",
    "max_steps": "train_iters",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "lr_decay_style",
    "max_grad_norm": "gradient_clipping",
    "adam_beta1": "optimizer.params.betas",
    "adam_beta2": "optimizer.params.betas",
    "adam_epsilon": "optimizer.params.eps",
    "optim": "optimizer.type",
    "logging_steps": "log_interval",
    "save_steps": "checkpoint_factor",
    "save_total_limit": "keep_last_n_checkpoints",
    "eval_steps": "eval_interval",
    "output_dir": "save",
    "resume_from_checkpoint": "load",
    "gradient_checkpointing": "checkpoint_activations",
    "dataloader_num_workers": "num_workers",
    "run_name": "wandb_run_name",
    "report_to": "use_wandb",
}

PAPERS = {
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_layers",
    "max_seq_len": "seq_length",
    "context_length": "seq_length",
    "sequence_length": "seq_length",
    "global_batch_size": "train_batch_size",
    "vocabulary_size": "padded_vocab_size",
}

# What a value of the other trainer becomes, where it is not the same value
NOTES = {
    "warmup_steps": "a fraction of lr_decay_iters",
    "tie_word_embeddings": "with the opposite value",
    "beta1": "a list of two",
    "beta2": "a list of two",
    "adam_beta1": "a list of two",
    "adam_beta2": "a list of two",
}

FOREIGN = NANO_GPT | HUGGING_FACE | PAPERS


def foreign_key(name: str) -> str | None:
    """What a key of nanoGPT, Hugging Face or the papers is called here, in one clause, or None."""
    if name not in FOREIGN:
        return None
    note = f" ({NOTES[name]})" if name in NOTES else ""
    return f"it is called {FOREIGN[name].replace('_', '-')!r} here{note}"
