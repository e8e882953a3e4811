"""The static audit of a configuration: build its model and optimizer, measure them, and compare with a second table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.audit.expected import Expectation, Expected, base_dimensions
from megatron.audit.forward import backward_rows, forward_rows
from megatron.audit.optimizer import schedule_faults, update_faults
from megatron.initialize import Runtime
from megatron.model.build import materialise
from megatron.neox_arguments.job_configs import AuditConfig
from megatron.neox_arguments.run_config import BatchConfig
from megatron.parametrization.audit import notes
from megatron.tokenizer import build_tokenizer
from megatron.training.engine import build_train_module
from megatron.training.full_state import whole_parameters
from megatron.training.model_from_config import model_plan
from megatron.training.train_module import TrainModule
from mup.static_audit import FACTOR, Audit, AuditRow

ERRORS = 6.0  # tolerance of an initial std, in standard errors
MAX_TOKENS = 32  # of the audit's sample: a multiplier needs no long context
MAX_PARAMETERS = 300_000_000  # of a model whose backward pass is measured: in float64 it takes 8 bytes each


class ModelAudit(Audit):
    """Audit with the rows of all parameters, followed by those of the forward factors."""

    @property
    def parameters(self) -> list[AuditRow]:
        return [row for row in self.rows if row.role != FACTOR]

    @property
    def factors(self) -> list[AuditRow]:
        return [row for row in self.rows if row.role == FACTOR]


def run_audit(config: AuditConfig, runtime: Runtime) -> ModelAudit:
    """Build the configured model on the engine and compare it with the expected values. The same on all processes."""
    tokenizer = build_tokenizer(*config.tokenizer)
    plan = model_plan(config.model, tokenizer.vocab_size)
    expected = Expected(config.keys, _base_dimensions(config))
    batch = BatchConfig(size=runtime.groups.data.size, micro=1, accumulation=1)
    module = build_train_module(config.engine, runtime, plan, config.schedule, batch, config.seed)
    rules, rows = _initial_rows(module, expected)
    text = _sample(config, tokenizer.vocab_size)
    found = _forward_rows(config, module, text, expected)
    remarks = notes(plan.parameters, plan.parametrization.widths, plan.parametrization.base)
    known = {name: row for name, row in rows.items() if name in rules}
    if len(known) == len(rows):
        schedule_faults(module, expected, rules, rows)
        if reason := update_faults(module, text, expected, rules, rows):
            remarks.append(f"no update of the weights was measured: {reason}")
    module.engine.destroy()
    if plan.num_parameters <= MAX_PARAMETERS:
        found += backward_rows(materialise(plan, config.seed), text[:, :-1]) if runtime.is_first else []
    else:
        remarks.append(f"the backward pass was not measured: the model has over {MAX_PARAMETERS:,} parameters")
    return ModelAudit(_merged(runtime, [*rows.values(), *found]), remarks)


def _forward_rows(config: AuditConfig, module: TrainModule, text: Tensor, expected: Expected) -> list[AuditRow]:
    """The multipliers of the running model. ZeRO 3 hides the weights from hooks, so there the model is built again."""
    if config.engine.zero_stage == 3:
        model = materialise(module.plan, config.seed).eval()
        return forward_rows(model, lambda: model(text[:, :-1]), expected, 1e-3)
    tolerance = 1e-3 if config.engine.precision == "fp32" else 3e-2
    return forward_rows(module.model, lambda: module.evaluate(iter([{"text": text}]), 1), expected, tolerance)


def _base_dimensions(config: AuditConfig) -> dict[str, int]:
    """Base dimensions in the base-shape files of the configuration, if there are any."""
    prefix = config.keys["base_shapes_file"] if config.keys["use_mup"] else None
    if prefix is None:
        return {}
    first = Path(f"{prefix}.0")
    return base_dimensions((first if first.exists() else Path(prefix)).read_text())


def _sample(config: AuditConfig, vocab_size: int) -> Tensor:
    """Random tokens [1, s + 1]. A pipeline is built for the sequence length of the run."""
    length = config.model.seq_length
    if config.engine.layout.pipe <= 1 and config.engine.layout.tensor == 1:
        length = min(length, MAX_TOKENS)
    return torch.randint(vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(config.seed))


def _initial_rows(module: TrainModule, expected: Expected) -> tuple[dict[str, Expectation], dict[str, AuditRow]]:
    """Expectations and rows of the parameters of this process, with their initial values compared. Collective."""
    rules, rows = {}, {}
    for name, weight in whole_parameters(module):
        rule = expected.parameter(name, weight.shape)
        if rule is None:
            rows[name] = AuditRow(name, "unknown", tuple(weight.shape))
            rows[name].faults["rule"] = "no rule covers this parameter"
            continue
        base_shape = module.plan.parameters[name].base_shape
        rules[name], row = rule, AuditRow(name, rule.kind, tuple(weight.shape), base_shape, rule.r)
        rows[name] = row
        if rule.kind == "vector":
            row.compare("init_value", float(weight.float().mean()), rule.value, 1e-6)
            row.compare("init_std", float(weight.float().std(correction=0)), 0.0)
        half = weight.dtype != torch.float32
        for part, first, last, period, std in rule.parts:
            drawn = weight.float().unflatten(0, (-1, period))[:, first:last]
            error = ERRORS / (2.0 * drawn.numel()) ** 0.5 + (1e-3 if half else 0.0)
            label = f"init_std of {part}" if part in ("key", "value") else "init_std"
            row.compare(label, float(drawn.square().mean().sqrt()), std, error)
            row.compare(
                label.replace("std", "mean"), float(drawn.mean()), 0.0, 0.0, ERRORS * std / drawn.numel() ** 0.5
            )
    return rules, rows


def _merged(runtime: Runtime, rows: list[AuditRow]) -> list[AuditRow]:
    """The rows of all processes by name, with the faults of each."""
    if runtime.world_size == 1:
        return rows
    everything: list[Any] = [None] * runtime.world_size
    torch.distributed.all_gather_object(everything, rows)
    merged: dict[str, AuditRow] = {}
    for row in (row for part in everything for row in part):
        first = merged.setdefault(row.name, row)
        for quantity, fault in row.faults.items():
            if quantity not in first.faults:
                first.faults[quantity], first.measured[quantity] = fault, row.measured.get(quantity, 0.0)
    parameters = [row for row in merged.values() if row.role != FACTOR]
    return [*parameters, *(row for row in merged.values() if row.role == FACTOR)]
