"""The one place where the configuration's keys become the numbers that models, parametrizations and optimizers take."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron.architecture import Widths
from megatron.errors import BaseShapeError, ConfigError
from megatron.model.build import ModelPlan, plan_model
from megatron.model.config import GPTConfig
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.sizes import ffn_hidden_size
from megatron.parametrization.base_shapes import (
    BASE_KEYS,
    BaseShapeFiles,
    base_head_counts,
    base_widths,
    check_base_shapes,
    load_base_shapes,
)
from megatron.parametrization.plan import Parametrization
from megatron.parametrization.widths import Multipliers
from megatron.tokenizer import padded_vocab_size
from mup.init_methods import InitMethods
from mup.rules import Options


def target_widths(args: NeoXArgs) -> Widths:
    """Widths of the model that the configuration describes."""
    args.require("num_layers", "hidden_size", "num_attention_heads", "seq_length")
    return Widths(
        hidden_size=args.hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_kv_heads=args.num_kv_heads or args.num_attention_heads,
        ffn_hidden_size=_ffn(args, args.hidden_size, args.intermediate_size),
        num_layers=args.num_layers,
    )


def _ffn(args: NeoXArgs, hidden_size: int, intermediate_size: int | None) -> int:
    return ffn_hidden_size(hidden_size, intermediate_size, args.expansion_factor, args.activation, args.mlp_multiple_of)


def keyed_base_widths(args: NeoXArgs, target: Widths) -> Widths | None:
    """Base widths from the mup-base-* keys; None without mup-base-hidden-size. Unset ones scale with the width."""
    hidden_size = args.mup_base_hidden_size
    if hidden_size is None:
        return None
    intermediate = args.mup_base_intermediate_size
    if intermediate is None and args.intermediate_size is not None:
        intermediate, rest = divmod(args.intermediate_size * hidden_size, args.hidden_size)
        if rest:
            raise ConfigError(
                f"intermediate-size {args.intermediate_size} at hidden-size {args.hidden_size} does not scale to "
                f"a whole number at mup-base-hidden-size {hidden_size}; give mup-base-intermediate-size"
            )
    heads, kv_heads = base_head_counts(target, args.mup_base_num_attention_heads, args.mup_base_num_kv_heads)
    return Widths(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=_ffn(args, hidden_size, intermediate),
        num_layers=args.mup_base_num_layers or target.num_layers,
    )


def _agree(loaded: BaseShapeFiles, keyed: Widths, stored: Widths) -> None:
    for key, value in dataclasses.asdict(keyed).items():
        if getattr(stored, key) != value:
            raise BaseShapeError(
                f"{BASE_KEYS[key]} is {value} by the configuration and {getattr(stored, key)} in {loaded.names}: "
                "correct the key, or remove base-shapes-file"
            )


def resolve_base_widths(args: NeoXArgs, target: Widths) -> tuple[Widths, BaseShapeFiles | None]:
    """The base of this run: by key, by file (then also returned, to be checked), or the model itself."""
    keyed = keyed_base_widths(args, target) if args.use_mup else None
    if not args.use_mup or args.save_base_shapes or args.base_shapes_file is None:
        return keyed or target, None
    loaded = load_base_shapes(Path(args.base_shapes_file))
    stored = base_widths(loaded, target, args.mup_base_num_attention_heads, args.mup_base_num_kv_heads)
    if keyed is not None:
        _agree(loaded, keyed, stored)
    if args.mup_base_num_layers is not None and args.mup_base_num_layers != stored.num_layers:
        raise BaseShapeError(
            f"mup-base-num-layers is {args.mup_base_num_layers} and {loaded.names} hold {stored.num_layers} layers"
        )
    return stored, loaded


def parametrization_of(args: NeoXArgs, widths: Widths, base: Widths) -> Parametrization:
    """muP towards `base` with use-mup, else SP: the model is its own base."""
    options = Options(
        mup=args.use_mup,
        optimizer=args.optimizer_type,
        weight_decay_mode=args.mup_weight_decay_mode if args.use_mup else "constant",
        eps_scaling=args.mup_eps_scaling,
        depth_alpha=args.mup_depth_alpha if args.use_mup else 0.0,
        readout_zero_init=args.use_mup and args.mup_readout_zero_init,
    )
    multipliers = Multipliers()
    if args.use_mup:
        multipliers = Multipliers(
            args.mup_init_scale,
            args.mup_attn_temp,
            args.mup_output_temp,
            args.mup_embedding_mult,
        )
    return Parametrization(
        widths,
        base if args.use_mup else widths,
        options,
        InitMethods(args.init_method, args.output_layer_init_method, args.init_method_std),
        multipliers,
        query_zero_init=args.use_mup and args.mup_query_zero_init,
    )


def gpt_config(args: NeoXArgs, widths: Widths, vocab_size: int) -> GPTConfig:
    """Shape and switches of the model. `vocab_size`: the tokenizer's."""
    padded = args.padded_vocab_size or padded_vocab_size(
        vocab_size, args.make_vocab_size_divisible_by, args.model_parallel_size
    )
    if padded < vocab_size:
        raise ConfigError(f"padded-vocab-size {padded} is less than the tokenizer's vocabulary of {vocab_size}")
    return GPTConfig(
        widths=widths,
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        seq_length=args.seq_length,
        max_position_embeddings=args.max_position_embeddings or args.seq_length,
        pos_emb=args.pos_emb,
        rotary_pct=args.rotary_pct,
        rotary_base=args.rotary_emb_base,
        norm=args.norm,
        norm_epsilon=args.layernorm_epsilon if args.norm == "layernorm" else args.rms_norm_epsilon,
        norm_bias=args.use_bias_in_norms,
        qk_norm=args.use_qk_layernorm,
        activation=args.activation,
        attention_bias=args.use_bias_in_attn_linear,
        mlp_bias=args.use_bias_in_mlp,
        parallel_residual=args.gpt_j_residual,
        shared_norm=args.gpt_j_tied,
        tied_readout=not args.no_weight_tying,
        attention_dropout=args.attention_dropout,
        hidden_dropout=args.hidden_dropout,
        checkpoint_every=args.checkpoint_num_layers if args.checkpoint_activations else 0,
    )


def model_plan(args: NeoXArgs, vocab_size: int) -> ModelPlan:
    """The plan of the configured model, its base-shape files checked against it."""
    widths = target_widths(args)
    base, loaded = resolve_base_widths(args, widths)
    plan = plan_model(gpt_config(args, widths, vocab_size), parametrization_of(args, widths, base))
    if loaded is not None:
        check_base_shapes(
            loaded,
            {name: parameter.base_shape for name, parameter in plan.parameters.items()},
            {name: parameter.shape for name, parameter in plan.parameters.items()},
            base.num_layers,
        )
    return plan
