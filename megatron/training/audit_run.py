"""The static audit of a configuration: build its model and optimizer, measure them, and compare with the rules."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional as F

from megatron.initialize import Runtime
from megatron.model.block import Block
from megatron.model.gpt import GPT
from megatron.model.moe import expert_layers
from megatron.neox_arguments.job_configs import AuditConfig
from megatron.neox_arguments.run_config import BatchConfig, ScheduleConfig
from megatron.parametrization.audit import audit_parameters, notes
from megatron.tokenizer import build_tokenizer
from megatron.training.engine import build_train_module
from megatron.training.model_from_config import model_plan
from mup.static_audit import FACTOR, Audit, AuditRow, factor_row, measured_attention_scale, measured_gain


class ModelAudit(Audit):
    """Audit with the rows of all parameters, followed by those of the forward factors."""

    @property
    def parameters(self) -> list[AuditRow]:
        return [row for row in self.rows if row.role != FACTOR]

    @property
    def factors(self) -> list[AuditRow]:
        return [row for row in self.rows if row.role == FACTOR]


def _factor_rows(model: GPT) -> list[AuditRow]:
    """Measure each forward factor on the fp32 model."""
    expected, head_dim = model.factors, model.config.widths.head_dim
    block = cast(Block, model.layers[0])
    model.eval()
    tokens = torch.zeros(1, 2, dtype=torch.long)
    raw = model.embedding.word_embeddings(tokens)
    if model.embedding.position_embeddings is not None:
        raw = raw + model.embedding.position_embeddings.weight[:2]
    x = torch.ones(1, 2, model.config.widths.hidden_size)
    weight = torch.rand(model.config.padded_vocab_size, x.shape[-1])  # the weight of the readout can be zero
    logits = F.linear(x, weight)[..., : model.config.vocab_size]
    rows = [
        factor_row("embedding", expected.embedding, measured_gain(model.embedding, tokens, raw)),
        factor_row("attention scale", expected.attention, measured_attention_scale(block.attention.core, head_dim)),
        factor_row("residual branch", expected.residual, measured_gain(block._branch, x, x)),
        factor_row("logits", expected.logits, measured_gain(lambda x: model.readout(x, weight), x, logits)),
    ]
    for layer in expert_layers(model)[:1]:
        layer.router.weight.data = torch.rand_like(layer.router.weight)  # it can be zero, as the readout
        scores = F.linear(x, layer.router.weight)
        rows.append(factor_row("router", expected.logits, measured_gain(layer.router, x, scores)))
    return rows


def run_audit(config: AuditConfig, runtime: Runtime) -> ModelAudit:
    """Build the configured model on the engine and compare it with the rules, at the peak rate of the schedule."""
    tokenizer = build_tokenizer(*config.tokenizer)
    plan = model_plan(config.model, tokenizer.vocab_size)
    schedule = ScheduleConfig(lr=config.lr, decay_iters=1)
    batch = BatchConfig(size=runtime.groups.data.size, micro=1, accumulation=1)
    module = build_train_module(config.engine, runtime, plan, schedule, batch, config.seed)
    parameters = audit_parameters(
        dict(module.model.named_parameters()),
        plan.parameters,
        module.engine.optimizer.param_groups,
        lr=config.lr,
        eps=config.engine.optimizer.eps,
        weight_decay=config.engine.optimizer.weight_decay,
    )
    factors = _factor_rows(module.model.float().cpu())
    parametrization = plan.parametrization
    return ModelAudit(parameters + factors, notes(plan.parameters, parametrization.widths, parametrization.base))
