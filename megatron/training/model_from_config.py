"""Plan a model from a ModelConfig. Only this module uses both the configuration and the muP rules."""

from __future__ import annotations

from megatron.architecture import Widths
from megatron.checkpointing import Assembly
from megatron.errors import BaseShapeError, ConfigError
from megatron.model.build import ModelPlan, meta_model, plan_model
from megatron.model.config import GPTConfig
from megatron.mpu import named_shards
from megatron.neox_arguments.run_config import ModelConfig, ParametrizationConfig
from megatron.parametrization.base_shapes import (
    BASE_KEYS,
    BaseShapeFiles,
    base_widths,
    check_base_shapes,
    load_base_shapes,
)
from megatron.parametrization.plan import Parametrization
from megatron.parametrization.widths import Multipliers
from megatron.tokenizer import padded_vocab_size
from mup.init_methods import InitMethods
from mup.rules import Options


def resolve_base_widths(model: ModelConfig) -> tuple[Widths, BaseShapeFiles | None]:
    """Base widths of the model, from its base-shape files or from the configuration.

    Also returns the files, if there are any, to check them. Raises BaseShapeError if the files and the configuration
    disagree.
    """
    config = model.parametrization.base_shapes_file
    if config is None:
        return model.parametrization.base, None
    loaded = load_base_shapes(config.prefix)
    stored = base_widths(loaded, model.widths, config.num_attention_heads, config.num_kv_heads)
    for key, value in config.stated.items():
        if getattr(stored, key) != value:
            raise BaseShapeError(
                f"{BASE_KEYS[key]} is {value} in the configuration, but {getattr(stored, key)} in {loaded.names}: "
                "correct the key, or remove base-shapes-file"
            )
    return stored, loaded


def make_parametrization(config: ParametrizationConfig, widths: Widths, base: Widths) -> Parametrization:
    """Parametrization of a model with these widths, as configured."""
    return Parametrization(
        widths,
        base,
        Options(
            mup=config.mup,
            optimizer=config.optimizer,
            weight_decay_mode=config.weight_decay_mode,
            eps_scaling=config.eps_scaling,
            depth_alpha=config.depth_alpha,
            readout_zero_init=config.readout_zero_init,
        ),
        InitMethods(config.init_method, config.output_init_method, config.init_std),
        Multipliers(
            config.init_scale,
            config.attn_temp,
            config.output_temp,
            config.embedding_mult,
            config.rp_embedding_mult,
        ),
        query_zero_init=config.query_zero_init,
    )


def gpt_config(model: ModelConfig, widths: Widths, vocab_size: int) -> GPTConfig:
    """Configuration of the model at these widths. vocab_size: that of the tokenizer.

    Raises ConfigError if padded-vocab-size is smaller than the vocabulary.
    """
    padded = model.padded_vocab_size or padded_vocab_size(vocab_size, model.vocab_multiple)
    if padded < vocab_size:
        raise ConfigError(f"padded-vocab-size: expected at least the vocabulary of {vocab_size}, got {padded}")
    return GPTConfig(
        **vars(model.architecture),
        widths=widths,
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        seq_length=model.seq_length,
        max_position_embeddings=model.max_position_embeddings,
    )


def model_plan(model: ModelConfig, vocab_size: int) -> ModelPlan:
    """Plan the configured model, and check its base-shape files against the plan."""
    base, loaded = resolve_base_widths(model)
    plan = plan_model(
        gpt_config(model, model.widths, vocab_size), make_parametrization(model.parametrization, model.widths, base)
    )
    if loaded is not None:
        check_base_shapes(
            loaded,
            {name: parameter.base_shape for name, parameter in plan.parameters.items()},
            {name: parameter.shape for name, parameter in plan.parameters.items()},
            base.num_layers,
        )
    return plan


def neox_assembly(plan: ModelPlan) -> Assembly:
    """How the parameters of the model are made of the shards in a checkpoint of GPT-NeoX."""
    config = plan.config
    model = meta_model(config, plan.factors)
    return Assembly(
        shapes={name: tuple(parameter.shape) for name, parameter in plan.parameters.items()},
        shards={name: (spec.dim, spec.blocks) for name, spec in named_shards(model).items()},
        num_heads=config.widths.num_attention_heads,
        num_kv_heads=config.widths.num_kv_heads,
        parallel_residual=config.parallel_residual,
    )
