"""Tiny models for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron.architecture import Widths
from megatron.model import GPT, GPTConfig
from megatron.model.build import materialise, plan_model
from megatron.parametrization.plan import Parametrization
from megatron.parametrization.widths import Multipliers
from mup.init_methods import InitMethods
from mup.rules import Options

VOCAB = 37
WIDTHS = Widths(hidden_size=32, num_attention_heads=4, num_kv_heads=4, ffn_hidden_size=48, num_layers=2)
SP = Options(mup=False, weight_decay_mode="constant")


def config(**changes: Any) -> GPTConfig:
    """Configuration of a tiny GPT. Changes are fields of GPTConfig or of its widths."""
    of_widths = {field.name for field in dataclasses.fields(Widths)}
    widths = dataclasses.replace(WIDTHS, **{k: v for k, v in changes.items() if k in of_widths})
    rest = {k: v for k, v in changes.items() if k not in of_widths}
    defaults = dict(vocab_size=VOCAB, padded_vocab_size=40, seq_length=16, max_position_embeddings=16)
    return GPTConfig(widths=widths, **{**defaults, **rest})  # type: ignore[arg-type]


def parametrization(
    config: GPTConfig,
    *,
    base: Widths | None = None,
    multipliers: Multipliers | None = None,
    std: float = 0.2,
    **options: Any,
) -> Parametrization:
    """SP without a base, otherwise muP with that base. The large std makes attention depend on its input."""
    chosen = SP if base is None else Options(mup=True, **options)
    return Parametrization(
        config.widths,
        base or config.widths,
        chosen,
        InitMethods("normal", "normal", std),
        multipliers or Multipliers(),
    )


def build(config: GPTConfig, seed: int = 1, **of_parametrization: Any) -> GPT:
    """Build a model with weights. Biases and gains are also random, so that tests detect an ignored one."""
    model = materialise(plan_model(config, parametrization(config, **of_parametrization)), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def tokens(batch: int = 2, length: int = 10, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Random tokens, int64 [batch, length]."""
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
