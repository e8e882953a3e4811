"""The cost of a training run, computed from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.neox_arguments.job_configs import CostConfig


@dataclass(frozen=True)
class Cost:
    """Parameters, training tokens and training FLOPs of a run."""

    params: int
    tokens: int
    flops: float


def cost_of(config: CostConfig, vocab_size: int | None = None) -> Cost:
    """Parameters, tokens and training FLOPs (see megatron.monitoring.flops) of a configuration.

    vocab_size: read from the tokenizer's files if None.
    """
    from megatron.tokenizer import build_tokenizer
    from megatron.training.model_from_config import model_plan
    from megatron.training.report import flops_a_token

    if vocab_size is None:
        vocab_size = build_tokenizer(*config.tokenizer).vocab_size
    plan = model_plan(config.model, vocab_size)
    return Cost(plan.num_parameters, config.tokens, flops_a_token(plan) * config.tokens)
