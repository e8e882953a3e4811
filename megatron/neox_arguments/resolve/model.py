"""Resolve the model: tokenizer, widths, architecture and parametrization."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron.architecture import Architecture, MixtureOfExperts, RopeScaling, Widths
from megatron.errors import ConfigError
from megatron.neox_arguments.arguments import NeoXArgs
from megatron.neox_arguments.resolve.known import known
from megatron.neox_arguments.run_config import (
    BaseShapesFileConfig,
    ModelConfig,
    OptimizerKind,
    ParametrizationConfig,
    TokenizerConfig,
)
from megatron.neox_arguments.sizes import base_head_counts, ffn_hidden_size


def optimizer_kind(args: NeoXArgs) -> OptimizerKind:
    match args.optimizer_type:
        case ("adam" | "sgd") as kind:
            return kind
        case _:
            raise AssertionError(f"validation accepted optimizer {args.optimizer_type}")


def tokenizer_config(args: NeoXArgs) -> TokenizerConfig:
    return TokenizerConfig(tokenizer_type=args.tokenizer_type, vocab_file=args.vocab_file, merge_file=args.merge_file)


def _widths(args: NeoXArgs) -> Widths:
    """Return the widths of the configured model."""
    args.require("num_layers", "hidden_size", "num_attention_heads", "seq_length")
    hidden_size, heads = known(args.hidden_size), known(args.num_attention_heads)
    return Widths(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_kv_heads=args.num_kv_heads or heads,
        ffn_hidden_size=_ffn(args, hidden_size, args.intermediate_size),
        num_layers=known(args.num_layers),
    )


def _ffn(args: NeoXArgs, hidden_size: int, intermediate_size: int | None) -> int:
    return ffn_hidden_size(hidden_size, intermediate_size, args.expansion_factor, args.activation, args.mlp_multiple_of)


def _base_by_keys(args: NeoXArgs, target: Widths) -> Widths | None:
    """Return the base widths from the mup_base_* keys, or None without mup_base_hidden_size.

    An unset intermediate size scales with the hidden size.
    """
    hidden_size = args.mup_base_hidden_size
    if hidden_size is None:
        return None
    intermediate = args.mup_base_intermediate_size
    if intermediate is None and args.intermediate_size is not None:
        intermediate, rest = divmod(args.intermediate_size * hidden_size, target.hidden_size)
        if rest:
            raise ConfigError(
                f"intermediate_size: {args.intermediate_size} at hidden_size {target.hidden_size} does not scale to an "
                f"integer at mup_base_hidden_size {hidden_size}; set mup_base_intermediate_size"
            )
    heads, kv_heads = base_head_counts(
        target.num_attention_heads,
        target.num_kv_heads,
        args.mup_base_num_attention_heads,
        args.mup_base_num_kv_heads,
    )
    return Widths(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=_ffn(args, hidden_size, intermediate),
        num_layers=args.mup_base_num_layers or target.num_layers,
    )


def _base_shapes_file(args: NeoXArgs, target: Widths, by_keys: Widths | None) -> BaseShapesFileConfig | None:
    if args.save_base_shapes or args.base_shapes_file is None:
        return None
    heads, kv_heads = base_head_counts(
        target.num_attention_heads,
        target.num_kv_heads,
        args.mup_base_num_attention_heads,
        args.mup_base_num_kv_heads,
    )
    stated: dict[str, int] = {} if by_keys is None else dataclasses.asdict(by_keys)
    if args.mup_base_num_layers is not None:
        stated["num_layers"] = args.mup_base_num_layers
    return BaseShapesFileConfig(
        prefix=Path(args.base_shapes_file), num_attention_heads=heads, num_kv_heads=kv_heads, stated=stated
    )


def _parametrization(args: NeoXArgs, widths: Widths) -> ParametrizationConfig:
    if not args.use_mup:
        return ParametrizationConfig(
            mup=False,
            optimizer=optimizer_kind(args),
            base=widths,
            init_method=args.init_method,
            output_init_method=args.output_layer_init_method,
            init_std=args.init_method_std,
        )
    by_keys = _base_by_keys(args, widths)
    return ParametrizationConfig(
        mup=True,
        optimizer=optimizer_kind(args),
        base=by_keys or widths,
        base_shapes_file=_base_shapes_file(args, widths, by_keys),
        init_method=args.init_method,
        output_init_method=args.output_layer_init_method,
        init_std=args.init_method_std,
        init_scale=args.mup_init_scale,
        attn_temp=args.mup_attn_temp,
        output_temp=args.mup_output_temp,
        embedding_mult=args.mup_embedding_mult,
        rp_embedding_mult=args.mup_rp_embedding_mult,
        depth_alpha=args.mup_depth_alpha,
        eps_scaling=args.mup_eps_scaling,
        weight_decay_mode=args.mup_weight_decay_mode,
        readout_zero_init=args.mup_readout_zero_init,
        query_zero_init=args.mup_query_zero_init,
    )


def _rope_scaling(args: NeoXArgs) -> RopeScaling | None:
    if args.rope_scaling is None:
        return None
    section = dict(args.rope_scaling)
    original = section.pop("original_max_position_embeddings", None)
    positions = original or args.max_position_embeddings or known(args.seq_length)
    return RopeScaling(**section, original_positions=positions)


def _experts(args: NeoXArgs) -> MixtureOfExperts | None:
    if args.moe_num_experts == 1:
        return None
    return MixtureOfExperts(
        num_experts=args.moe_num_experts,
        top_k=args.moe_top_k,
        interval=args.moe_expert_interval,
        router=args.moe_router_type,
        normalize=args.moe_normalize_expert_weights,
        jitter=args.moe_jitter_eps or 0.0,
        balance_coeff=args.moe_aux_loss_coeff,
        z_coeff=args.moe_z_loss_coeff,
    )


def _architecture(args: NeoXArgs) -> Architecture:
    match args.norm:
        case ("rmsnorm" | "scalenorm" | "layernorm" | "non_parametric_layernorm") as norm:
            pass
        case _:
            raise AssertionError(f"validation accepted norm {args.norm}")
    epsilon = {"rmsnorm": args.rms_norm_epsilon, "scalenorm": args.scalenorm_epsilon}
    return Architecture(
        pos_emb=args.pos_emb,
        position_offset=args.opt_pos_emb_offset,
        rotary_pct=args.rotary_pct,
        rotary_base=args.rotary_emb_base,
        rope_scaling=_rope_scaling(args),
        rpe_num_buckets=args.rpe_num_buckets,
        rpe_max_distance=args.rpe_max_distance,
        sliding_window=args.sliding_window_width,
        norm=norm,
        norm_epsilon=epsilon.get(norm, args.layernorm_epsilon),
        norm_bias=args.use_bias_in_norms,
        qk_norm=args.use_qk_layernorm,
        activation="gelu_tanh" if args.activation == "gelu" and args.bias_gelu_fusion else args.activation,
        experts=_experts(args),
        attention_bias=args.use_bias_in_attn_linear,
        mlp_bias=args.use_bias_in_mlp,
        parallel_residual=args.gpt_j_residual,
        shared_norm=args.gpt_j_tied,
        tied_readout=not args.no_weight_tying,
        attention_dropout=args.attention_dropout,
        hidden_dropout=args.hidden_dropout,
        checkpoint_every=args.checkpoint_num_layers if args.checkpoint_activations else 0,
    )


def model_config(args: NeoXArgs) -> ModelConfig:
    """Resolve the model and its parametrization. The vocabulary size comes later, from the tokenizer."""
    widths = _widths(args)
    seq_length = known(args.seq_length)
    return ModelConfig(
        widths=widths,
        architecture=_architecture(args),
        parametrization=_parametrization(args, widths),
        seq_length=seq_length,
        max_position_embeddings=args.max_position_embeddings or seq_length,
        padded_vocab_size=args.padded_vocab_size,
        vocab_multiple=args.make_vocab_size_divisible_by * args.model_parallel_size,
    )
