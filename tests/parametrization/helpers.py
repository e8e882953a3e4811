"""Small models for the tests of the parametrization."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron.architecture import Widths
from megatron.model.build import ModelPlan, plan_model
from megatron.model.config import GPTConfig
from megatron.parametrization.plan import Parametrization
from megatron.parametrization.widths import Multipliers
from mup.init_methods import InitMethods
from mup.rules import Options

BASE = Widths(hidden_size=32, num_attention_heads=2, num_kv_heads=2, ffn_hidden_size=128, num_layers=2)


def scaled(mult: int, *, heads_grow: bool = True, base: Widths = BASE, num_layers: int | None = None) -> Widths:
    """Widths at `mult` times the base. GQA (fewer key-value heads than query heads) keeps its key-value heads."""
    grow = mult if heads_grow else 1
    grouped = base.num_kv_heads != base.num_attention_heads
    return Widths(
        hidden_size=base.hidden_size * mult,
        num_attention_heads=base.num_attention_heads * grow,
        num_kv_heads=base.num_kv_heads * (1 if grouped else grow),
        ffn_hidden_size=base.ffn_hidden_size * mult,
        num_layers=num_layers or base.num_layers,
    )


def make_plan(
    widths: Widths,
    base: Widths = BASE,
    *,
    options: Options = Options(),
    init: InitMethods = InitMethods(),
    multipliers: Multipliers = Multipliers(),
    query_zero_init: bool = False,
    **config: Any,
) -> ModelPlan:
    settings = {"vocab_size": 61, "padded_vocab_size": 64, "seq_length": 16, "max_position_embeddings": 16}
    gpt = GPTConfig(widths=widths, **{**settings, "tied_readout": False, **config})
    base = base if options.mup else widths
    return plan_model(gpt, Parametrization(widths, base, options, init, multipliers, query_zero_init))


def deeper(widths: Widths, num_layers: int) -> Widths:
    return dataclasses.replace(widths, num_layers=num_layers)
