"""Measure the multipliers of the running model: in every layer of a forward pass, and in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron.audit.expected import Expected
from megatron.model.attention import CoreAttention
from megatron.model.block import Block
from megatron.model.embedding import Embedding, Readout
from megatron.model.gpt import GPT
from megatron.model.layers import ScaleNorm
from megatron.model.moe import Router, expert_layers, route_by_position
from megatron.model.relative_position import RelativePositionBias
from megatron.mpu import gather_from_sequence
from mup.static_audit import FACTOR, AuditRow

BACKWARD = 1e-2  # relative tolerance of finite differences
# Length of a step over all parameters of a kind, at any width: angles of rotary embeddings and the norm are computed in
# float32, which a shorter step would show, and the third derivative would show in a longer one.
STEP = 1e-2


@dataclass
class _Seen:
    """Inputs and output of modules in one forward pass, by id."""

    inputs: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def hook(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.inputs[id(module)], self.outputs[id(module)] = inputs, output

    def of(self, module: nn.Module) -> Tensor:
        return self.outputs[id(module)].double()


def forward_rows(model: nn.Module, run: Callable[[], Any], expected: Expected, tolerance: float) -> list[AuditRow]:
    """Compare the multipliers in every layer of this process with the expected ones. Collective under TP and PP.

    run: makes one forward pass in evaluation mode.
    """
    seen = _Seen()
    handles = [module.register_forward_hook(seen.hook) for module in model.modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    name_of: Callable[[str], str] = getattr(model, "global_name", str)
    for local, module in model.named_modules():
        if id(module) in seen.outputs:
            with torch.no_grad():
                rows += list(_rows_of(module, name_of(local), seen, expected, tolerance))
    return rows


def _rows_of(module: nn.Module, name: str, seen: _Seen, expected: Expected, tolerance: float) -> Iterator[AuditRow]:
    def row(label: str, measured: float, rule: float) -> AuditRow:
        found = AuditRow(label, FACTOR)
        found.compare("forward", measured, rule, tolerance)
        return found

    if isinstance(module, Embedding):
        labels = ["embedding", "position embedding"]
        tables = [module.word_embeddings, module.position_embeddings]
        found = [table for table in tables if table is not None]
        factors = _coefficients(seen.of(module), [seen.of(table) for table in found])
        for label, factor in zip(labels, factors):
            yield row(label, factor, expected.embedding_factor())
        yield row("embedding rows", _row_size(module, seen), 1.0)
    elif isinstance(module, Block):
        x = seen.inputs[id(module)][0].double()
        branches = [seen.of(module.attention), seen.of(module.mlp)]
        for label, factor in zip(("attention", "mlp"), _coefficients(seen.of(module) - x, branches)):
            yield row(f"{name} {label} branch", factor, expected.branch_factor())
    elif isinstance(module, CoreAttention):
        q, block = seen.inputs[id(module)][0], name.rpartition(".attention")[0]
        scales = _attention_scales(module, q.shape[1], q.shape[-1])
        rule = expected.attention_factor()
        yield row(f"{block} attention scale", max(scales, key=lambda scale: abs(math.log(scale / rule))), rule)
    elif isinstance(module, RelativePositionBias):
        own = seen.of(module)[0, :, -1, -1]  # distance 0, which has the first bucket
        table = module.weight[0].double()
        block = name.rpartition(".attention")[0]
        yield row(f"{block} position bias", float(own @ table / (table @ table)), expected.position_bias_factor())
    elif isinstance(module, ScaleNorm):
        x, y = seen.inputs[id(module)][0].double(), seen.of(module)
        factor = float((y * x).sum(-1).mean() / x.norm(dim=-1).mean() / module.weight.double())
        yield row(name, factor, expected.norm_factor(over_heads=".attention." in name))
    elif isinstance(module, Readout):
        yield row("logits", _readout_factor(module, seen), expected.logits_factor())
    elif isinstance(module, Router):
        block = name.rpartition(".mlp")[0]
        yield row(f"{block} router", _router_factor(module, seen), expected.logits_factor())


def _coefficients(y: Tensor, parts: list[Tensor]) -> list[float]:
    """Coefficients c of the least-squares fit y = sum_i c_i parts_i."""
    columns = torch.stack([part.expand_as(y).flatten() for part in parts], dim=1)
    gram = columns.T @ columns
    return list((torch.linalg.pinv(gram) @ (columns.T @ y.flatten())).tolist())


def _row_size(module: Embedding, seen: _Seen) -> float:
    """Size of the rows that the token table returned, over the size of these rows in the table."""
    table, tokens = module.word_embeddings, seen.inputs[id(module)][0]
    found = seen.of(table)
    if found.shape[:2] != tokens.shape or len(table.weight) <= int(tokens.max()):
        return 1.0  # the table or the positions are distributed: other layouts give the same activations
    return float(found.norm() / F.embedding(tokens, table.weight).double().norm())


def _attention_scales(core: CoreAttention, heads: int, head_dim: int) -> list[float]:
    """The factor on q.k of each head, from the odds with which position 1 attends to position 0."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 2, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    difference = (q[0, :, 1] * (k[0, :, 0] - k[0, :, 1])).sum(-1)
    q = q / difference[None, :, None, None]  # a factor of 1 now gives log-odds of 1
    v = torch.zeros_like(q)
    v[..., 0, :] = 1.0
    weights = (core(x, k, v)[0, :, 1, 0] for x in (q, 0.0 * q))  # without q only ALiBi is left
    odds, of_positions = ((weight / (1.0 - weight)).log() for weight in weights)
    return list((odds - of_positions).tolist())


def _projected(x: Tensor, weight: Tensor, y: Tensor) -> float:
    """The factor c in y = c weight x."""
    raw = F.linear(x.double(), weight.double())[..., : y.shape[-1]]
    return float((raw * y.double()).sum() / raw.square().sum())


def _probe(weight: Tensor) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)


def _readout_factor(module: Readout, seen: _Seen) -> float:
    x, *tied = seen.inputs[id(module)]
    weight = tied[0] if tied and tied[0] is not None else module.weight
    y = seen.outputs[id(module)]
    if not bool(weight.any()):  # a readout that starts at zero
        weight = _probe(weight)
        y = module(x, weight)
    if module.tp.cuts_sequence:
        x = gather_from_sequence(x, module.tp.group)
    return _projected(x, weight, y)


def _router_factor(module: Router, seen: _Seen) -> float:
    x, y = seen.inputs[id(module)][0], seen.outputs[id(module)]
    if not bool(module.weight.any()):
        stored = module.weight.data
        module.weight.data = _probe(stored)
        y, weight = module(x), module.weight.data
        module.weight.data = stored
    else:
        weight = module.weight
    if module.tp.cuts_sequence:
        x = gather_from_sequence(x, module.tp.group)
    return _projected(x, weight, y)


def backward_rows(model: GPT, tokens: Tensor) -> list[AuditRow]:
    """Compare gradients with central differences of the forward pass, one direction per kind of parameter.

    The direction covers the parameters of all layers. A multiplier that the backward pass does not have, or has twice,
    changes the ratio. model: in one process; it is converted to float64 and its zero weights are replaced.
    """
    model = model.double().eval()
    for layer in expert_layers(model):
        layer.route = route_by_position  # a token that changes its expert has no derivative
    generator = torch.Generator().manual_seed(1)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise(p), alpha=0.02)
        coefficients = noise(model(tokens))

    def value() -> Tensor:
        total: Tensor = (model(tokens) * coefficients).sum()
        return total

    value().backward()
    kinds: dict[str, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        kinds.setdefault(".".join(part for part in name.split(".") if not part.isdigit()), []).append(p)
    return [_backward_row(kind, parameters, value, noise) for kind, parameters in kinds.items()]


@torch.no_grad()
def _backward_row(
    kind: str, parameters: list[nn.Parameter], value: Callable[[], Tensor], noise: Callable[[Tensor], Tensor]
) -> AuditRow:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    # along the gradient nothing cancels; without a gradient every direction shows it
    along = gradients if any(bool(g.any()) for g in gradients) else [noise(p) for p in parameters]
    length = math.sqrt(sum(float(d.square().sum()) for d in along))
    directions = [d * (STEP / length) for d in along]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions))
    values = []
    for sign in (1, -2):
        for p, d in zip(parameters, directions):
            p.add_(d, alpha=sign)
        values.append(float(value()))
    for p, d in zip(parameters, directions):
        p.add_(d)
    row = AuditRow(f"backward of {kind}", FACTOR)
    difference = (values[0] - values[1]) / 2
    row.compare("forward", slope / difference if difference else math.inf, 1.0, BACKWARD)
    return row
