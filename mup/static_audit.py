"""The static audit: measured and expected init, learning rate, eps, decay and forward factor of each parameter.

It finds mistakes that a short coordinate check misses, for example attention scaled by 1/sqrt(d). It needs no training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from mup.layer import MuOutput
from mup.plan import ScaledParameter, planned
from mup.roles import declares, infshape_of
from mup.rules import Options, Role, Scaling, attention_scale, readout_mult

__all__ = [
    "Audit",
    "AuditRow",
    "attention_scales",
    "audit",
]

CLOSE = 1e-6  # relative tolerance of computed numbers
FACTOR = "factor"  # role of rows that are not parameters


@dataclass(frozen=True)
class AuditRow:
    """One row of an audit: a parameter, a forward factor, or an attention call.

    shape, base_shape: sizes; None for a finite dimension.
    measured, expected: values by quantity (init_std, lr, eps, weight_decay, forward, attention_scale, ...).
    faults: by quantity, one sentence for each value that departs from its rule.
    """

    name: str
    role: str
    shape: Sequence[int | None] = ()
    base_shape: Sequence[int | None] = ()
    fan_in_mult: float = 1.0
    measured: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def departures(self) -> tuple[str, ...]:
        """Quantities that depart from their rule."""
        return tuple(self.faults)

    def compare(
        self, quantity: str, measured: float, expected: float, tolerance: float = CLOSE, absolute: float = 1e-15
    ) -> None:
        """Record both values, and a fault if they differ by more than the relative and the absolute tolerance."""
        self.measured[quantity], self.expected[quantity] = measured, expected
        if not math.isclose(measured, expected, rel_tol=tolerance, abs_tol=absolute):
            factor = f", {measured / expected:.3g} times too large" if expected and measured > expected else ""
            self.faults[quantity] = f"{quantity} is {measured:.4g}, the rule says {expected:.4g}{factor}"


@dataclass(frozen=True)
class Audit:
    """Result of an audit. passed: no row has a fault. notes: remarks that are not faults."""

    rows: list[AuditRow]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def summary(self) -> str:
        """Return the verdict in one line."""
        bad = sum(not row.passed for row in self.rows)
        return f"FAIL: {bad} of {len(self.rows)} rows" if bad else f"PASS: {len(self.rows)} rows"

    def table(self, only_faults: bool = False) -> str:
        """Return a table with one line per row, followed by the verdict.

        Cells are measured values, with the expected value in brackets if it differs.
        """
        quantities = list(dict.fromkeys(q for row in self.rows for q in row.measured))
        lines = [["name", "role", "shape", "base", "r", *quantities, "verdict"]]
        for row in self.rows:
            if only_faults and row.passed:
                continue
            cells = [row.name, row.role, size_text(row.shape), size_text(row.base_shape), f"{row.fan_in_mult:g}"]
            cells += [_cell(row.measured.get(q), row.expected.get(q)) for q in quantities]
            verdict = ["ok"] if row.passed else [f"FAIL: {fault}" for fault in row.faults.values()]
            lines.append([*cells, "; ".join(verdict + row.notes)])
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = ["  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines]
        return "\n".join([*text, *(f"note: {note}" for note in self.notes), self.summary()])


def size_text(shape: Sequence[int | None]) -> str:
    """Format a shape like 64x-, with - for a finite dimension."""
    return "x".join("-" if size is None else str(size) for size in shape)


def _cell(measured: float | None, expected: float | None) -> str:
    if measured is None:
        return ""
    same = expected is None or math.isclose(measured, expected, rel_tol=CLOSE, abs_tol=1e-12)
    return f"{measured:.4g}" + ("" if same else f" [{expected:.4g}]")


def audit(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    base: nn.Module | Mapping[str, float] | None = None,
    options: Options = Options(eps_scaling=False),
    lr: float | None = None,
    weight_decay: float | None = None,
    eps: float | None = None,
    width_mult: float | None = None,
    forward: Callable[[], Any] | None = None,
    base_head_dim: int | None = None,
    attention_temperature: float = 1.0,
) -> Audit:
    """Compare a freshly initialised model with base shapes, and its optimizer, with the rules.

    base: the base model, initialised by the same code, or name -> init std at base width. The expected std is this
        value times the rule. Without it, init is measured but not judged.
    options: the rules that the optimizer follows.
    lr, weight_decay, eps: base values; by default those of the optimizer groups with factor 1, otherwise the
        defaults of the optimizer.
    width_mult: m of the model, for the readout and eps; by default that of each matrix.
    forward: runs the model once. Every call of torch's attention (see `attention_scales`) is then compared with
        sqrt(base_head_dim) / (d * attention_temperature). No call is a fault.
    Raises ShapeError before set_base_shapes.
    """
    stds = {name: _std(p) for name, p in base.named_parameters()} if isinstance(base, nn.Module) else base
    everything = list(planned(model, options, width_mult=width_mult))
    groups = _groups_of(optimizer)
    known = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
    neutral = list(planned(model, options))
    bases = {key: _base_value(key, known[key], neutral, groups, optimizer) for key in known}
    rows = [_parameter_row(parameter, plan, groups.get(id(parameter)), bases, stds) for parameter, plan in everything]
    rows += _readout_rows(model, width_mult)
    if forward is not None:
        rows += _attention_rows(forward, base_head_dim, attention_temperature)
    return Audit(rows)


Planned = tuple[nn.Parameter, ScaledParameter]


def _groups_of(optimizer: Optimizer | None) -> dict[int, dict[str, Any]]:
    groups = [] if optimizer is None else optimizer.param_groups
    return {id(p): group for group in groups for p in group["params"]}


def _base_value(
    key: str,
    given: float | None,
    everything: Sequence[Planned],
    groups: Mapping[int, dict[str, Any]],
    optimizer: Optimizer | None,
) -> float | None:
    """Base value of lr, weight_decay or eps that follows from the optimizer groups."""
    if given is not None or optimizer is None:
        return given
    found = [
        float(groups[id(parameter)][key])
        for parameter, plan in everything
        if key in groups.get(id(parameter), {})
        and not (key == "weight_decay" and plan.role is Role.VECTOR)
        and getattr(plan.scaling, key) == 1.0
    ]
    if optimizer.defaults.get(key) is not None:  # the user's value decides if the groups disagree
        found.append(float(optimizer.defaults[key]))
    return Counter(found).most_common(1)[0][0] if found else None


def _parameter_row(
    parameter: nn.Parameter,
    plan: ScaledParameter,
    group: Mapping[str, Any] | None,
    bases: Mapping[str, float | None],
    stds: Mapping[str, float] | None,
) -> AuditRow:
    shape = plan.infshape
    row = AuditRow(plan.name, plan.role.value, shape.shape(), shape.base_shape(), plan.fan_in_mult)
    row.notes.extend(f"dimension {i} is finite but differs from the base" for i in shape.forgotten())
    if not parameter.is_meta:
        row.measured["init_std"] = _std(parameter)
        if stds is not None and plan.name in stds:
            expected = stds[plan.name] * plan.scaling.init_std
            row.compare("init_std", row.measured["init_std"], expected, _noise(parameter, plan))
    if group is not None:
        # the caller decides whether vectors decay: there is no rule in the width
        unruled = ("weight_decay",) if plan.role is Role.VECTOR else ()
        _compare_with_group(row, plan.scaling, bases, group, CLOSE, unruled)
    return row


def _compare_with_group(
    row: AuditRow,
    scaling: Scaling,
    bases: Mapping[str, float | None],
    group: Mapping[str, Any],
    tolerance: float,
    unruled: Sequence[str] = (),
) -> None:
    """Compare lr, eps and decay of the group with the base values times the factors. SGD has no eps."""
    for key, base in bases.items():
        if key in group and base is not None:
            measured = float(group[key])
            if key == "weight_decay":
                measured += group.get("independent_weight_decay", 0.0)
            row.compare(key, measured, measured if key in unruled else base * getattr(scaling, key), tolerance)


def _std(parameter: Tensor) -> float:
    """Standard deviation over all elements, without Bessel's correction; 0 for a single element."""
    values = parameter.detach().double()
    return float(values.std(correction=0)) if values.numel() > 1 else 0.0


def _noise(parameter: nn.Parameter, plan: ScaledParameter) -> float:
    """Relative tolerance of a measured std: five standard errors of the smaller of the two samples, plus 2 %."""
    base_size = math.prod(d.base_dim or d.dim or 1 for d in plan.infshape)
    return 0.02 + 5.0 / math.sqrt(2.0 * max(min(base_size, parameter.numel()), 1))


def _readout_rows(model: nn.Module, width_mult: float | None) -> Iterator[AuditRow]:
    """One row for each readout, and for each plain layer that maps a width to a finite dimension."""
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        shape = infshape_of(module.weight, f"{name}.weight")
        if not isinstance(module, MuOutput) and (not shape.reads_out() or declares(module)):
            continue
        m = shape.fanin_fanout()[0].width_mult() if width_mult is None else width_mult
        row = AuditRow(f"{name}()", "readout", fan_in_mult=m)
        row.compare("forward", _forward_factor(module), getattr(module, "output_mult", 1.0) * readout_mult(m), 1e-4)
        yield row


class _Both(nn.Module):
    """A layer, and the forward of the torch class that it derives from, on the same input."""

    def __init__(self, layer: nn.Linear | _ConvNd) -> None:
        super().__init__()
        self.layer = layer
        self.torch_class = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn."))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.torch_class.forward(self.layer, x)  # type: ignore[attr-defined]


def _forward_factor(layer: nn.Linear | _ConvNd) -> float:
    """Measure the factor that a layer applies to the output of its torch class, with a probe weight and input."""
    probe = {"layer.weight": torch.ones(layer.weight.shape)}
    if layer.bias is not None:
        probe["layer.bias"] = torch.zeros(layer.bias.shape)
    with torch.no_grad():
        ours, plain = functional_call(_Both(layer), probe, (torch.ones(_probe_size(layer)),))
    return float(ours.sum() / plain.sum())


def _probe_size(layer: nn.Linear | _ConvNd) -> tuple[int, ...]:
    """Smallest input [1, channels, ...] that covers the kernel and its padding; [1, in_features] for a linear layer."""
    if isinstance(layer, nn.Linear):
        return 1, layer.in_features
    padding = (0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
    sizes = zip(layer.kernel_size, layer.dilation, padding)
    return 1, layer.in_channels, *(2 * pad + dilation * (kernel - 1) + 1 for kernel, dilation, pad in sizes)


def _of_heads(embed_dim: int, heads: int) -> tuple[int, float]:
    """Head dimension and scale of torch's own multi-head attention, which always divides by the root."""
    return embed_dim // heads, (embed_dim // heads) ** -0.5


def _of_kernel(query: Tensor, *_: Any, scale: float | None = None, **__: Any) -> tuple[int, float]:
    return query.shape[-1], query.shape[-1] ** -0.5 if scale is None else float(scale)


# the functions of torch that compute attention, and the head dimension and scale of a call; the last two are fast paths
_ATTENTION: dict[Any, Callable[..., tuple[int, float]]] = {
    nn.functional.scaled_dot_product_attention: _of_kernel,
    nn.functional.multi_head_attention_forward: lambda q, k, v, embed_dim, heads, *_, **__: _of_heads(embed_dim, heads),
    torch._native_multi_head_attention: lambda q, k, v, embed_dim, heads, *_, **__: _of_heads(embed_dim, heads),
    torch._transformer_encoder_layer_fwd: lambda x, embed_dim, heads, *_, **__: _of_heads(embed_dim, heads),
}


class _AttentionScales(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ATTENTION:
            self.calls.append(_ATTENTION[func](*args, **kwargs))
        return func(*args, **kwargs)


def attention_scales(forward: Callable[[], Any]) -> list[tuple[int, float]]:
    """Return (head dimension, scale) of every call of torch's attention in `forward`, in order.

    These are scaled_dot_product_attention, nn.MultiheadAttention and nn.TransformerEncoderLayer.
    """
    with _AttentionScales() as mode, torch.no_grad():
        forward()
    calls: list[tuple[int, float]] = mode.calls
    return calls


def _attention_rows(forward: Callable[[], Any], base_head_dim: int | None, temperature: float) -> Iterator[AuditRow]:
    calls = attention_scales(forward)
    if not calls:
        row = AuditRow("attention", "attention")
        row.faults["attention_scale"] = (
            "forward calls no attention of torch, so no scale was measured: compute attention with "
            "torch.nn.functional.scaled_dot_product_attention(..., scale=mup.attention_scale(...)), or omit forward"
        )
        yield row
    for i, (head_dim, scale) in enumerate(calls):
        base = head_dim if base_head_dim is None else base_head_dim
        row = AuditRow(f"attention {i}", "attention", [head_dim], [base], head_dim / base)
        row.compare("attention_scale", scale, attention_scale(head_dim, base, temperature))
        yield row
