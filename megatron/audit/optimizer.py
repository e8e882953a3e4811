"""Measure the optimizer: its groups over the schedule, and its updates of the weights by a known gradient."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.audit.expected import Expectation, Expected
from megatron.training.engine import gradient_scale
from megatron.training.train_module import TrainModule
from mup.static_audit import AuditRow

RATE = 1e-4  # relative tolerance of rates, which an engine can keep in float32
UPDATE = 2e-3  # relative tolerance of an update of the weights
ROUNDING = 2.0**-24  # of float32
Rules = Mapping[str, Expectation]
Rows = Mapping[str, AuditRow]
RATIO = 32.0  # between the two sizes of the known gradient


def schedule_faults(module: TrainModule, expected: Expected, rules: Rules, rows: Rows) -> None:
    """Compare the groups of every parameter of this process over the real schedule, and leave it at the peak rate."""
    groups, scheduler = module.engine.optimizer.param_groups, module.scheduler
    params, _, eps = expected.optimizer()
    _in_one_group(module, groups, rows)
    phases = expected.phases()
    for phase, k in sorted(phases.items(), key=lambda item: item[1]):
        scheduler.step(k - scheduler.num_steps)
        for group in groups:
            for name in group["parameter_names"]:
                rate = expected.base_rate(k) * rules[name].lr
                rows[name].compare("lr" if phase == "peak" else f"lr at {phase}", float(group["lr"]), rate, RATE)
    for group in groups:
        for name in group["parameter_names"]:
            row, rule = rows[name], rules[name]
            if "eps" in group:
                row.compare("eps", float(group["eps"]), eps * rule.eps, RATE)
            decay = float(group["weight_decay"]) + float(group.get("independent_weight_decay", 0.0))
            row.compare("weight_decay", decay, rule.decay, RATE)
            for i, beta in enumerate(group.get("betas", ())):
                row.compare(f"beta{i + 1}", float(beta), float(params.get("betas", (0.9, 0.999))[i]), RATE)
            if "momentum" in group:
                row.compare("momentum", float(group["momentum"]), float(params.get("momentum", 0.0)), RATE)
    scheduler.step(phases["peak"] - scheduler.num_steps)


def _in_one_group(module: TrainModule, groups: list[dict[str, Any]], rows: Rows) -> None:
    named = [name for group in groups for name in group["parameter_names"]]
    for name, _ in module.model.global_named_parameters():
        if named.count(name) != 1:
            rows[name].faults["groups"] = f"the parameter is in {named.count(name)} optimizer groups, expected 1"


class _Gradient(NamedTuple):
    """A known gradient: signs times `small` for even entries and `small` x RATIO for odd ones."""

    signs: Tensor
    odd: Tensor
    small: float

    @property
    def value(self) -> Tensor:
        return self.signs * torch.where(self.odd, self.small * RATIO, self.small)


def update_faults(module: TrainModule, text: Tensor, expected: Expected, rules: Rules, rows: Rows) -> str:
    """Make two updates with a known gradient, at the peak and in the decay, and compare what the weights receive.

    These are training steps on text [1, s + 1] in which every parameter's gradient is replaced by the known one when
    the backward pass has computed it. It passes through the rest of the engine: loss scale, sums over processes,
    clipping, masters. From the change of the weights follow lr and eps as applied, the weight decay, and whether the
    weights are kept in fp32. Collective. Returns why no update was made; empty if it was.
    """
    parameters = dict(module.model.global_named_parameters())
    gradients = _gradients(module, expected, rules, parameters)
    if _too_small(module, gradients):
        return "the gradient is smaller than fp16 can hold with this loss scale"
    copies = _copies(module, parameters)
    hooks = [p.register_hook(_replace(module, gradients[name].value / copies[name])) for name, p in parameters.items()]
    for phase in ("peak", "decay"):
        k = expected.phases()[phase]
        module.scheduler.step(k - module.scheduler.num_steps)
        before = {name: master.double().flatten() for name, master in _masters(module).items()}
        module.train_step(iter([{"text": text}]))
        for name, master in _masters(module).items():
            change = master.double().flatten() - before[name]
            _compare(rows[name], phase, change, before[name], gradients[name], rules[name], expected)
            if phase == "peak":
                rows[name].compare("master_bits", master.element_size() * 8, 32)
    for hook in hooks:
        hook.remove()
    return ""


def _replace(module: TrainModule, known: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that replaces a computed gradient by the known one, with the engine's loss scale."""
    return lambda computed: (known * gradient_scale(module.engine)).to(computed).view_as(computed)


def _copies(module: TrainModule, parameters: Mapping[str, nn.Parameter]) -> Counter[str]:
    """On how many pipeline stages each parameter is: the engine adds up the gradients of a tied weight's copies."""
    pipe = module.runtime.groups.pipe
    stages: list[Any] = [list(parameters)]
    if pipe.size > 1:
        stages = [None] * pipe.size
        dist.all_gather_object(stages, list(parameters), group=pipe.process_group)
    return Counter(name for stage in stages for name in stage)


def _too_small(module: TrainModule, gradients: Mapping[str, _Gradient]) -> bool:
    """Whether any process has a gradient that is 0 in fp16. Collective."""
    scale, smallest = gradient_scale(module.engine), torch.finfo(torch.float16).smallest_normal
    own = module.engine.fp16_enabled() and any(g.small * scale < 2.0 * smallest for g in gradients.values())
    return float(module.runtime.mean(torch.tensor(float(own), device=module.runtime.device))) > 0


def _masters(module: TrainModule) -> dict[str, Tensor]:
    """This process's parts of the weights, as the optimizer updates them: in half precision the masters. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    optimizer = module.engine.optimizer
    pairs = zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()))
    wrapped = {id(p): master for group, masters in pairs for p, master in zip(group, masters)}  # at ZeRO stage 0
    found = {}
    for name, p in module.model.global_named_parameters():
        whole = p.dtype == torch.float32 and not hasattr(p, "ds_id")
        master = None if whole else wrapped.get(id(p), safe_get_full_fp32_param(p))
        found[name] = p.detach() if master is None else master.detach().view(_shape(p))
    return found


def _shape(p: nn.Parameter) -> torch.Size:
    """Shape of this process's part of a weight; under ZeRO 3 of the whole weight."""
    return torch.Size(getattr(p, "ds_shape", p.shape))


class _Sgd:
    """torch's SGD under a constant gradient."""

    def __init__(self, expected: Expected) -> None:
        params, _, _ = expected.optimizer()
        self.momentum, self.nesterov = float(params.get("momentum", 0.0)), bool(params.get("nesterov", False))

    def weight(self, buffer: float) -> float:
        return self.momentum * buffer + 1.0

    def factor(self, phase: str) -> float:
        """What multiplies the gradient in the first update (peak) and in the second (decay)."""
        first = self.weight(0.0)
        buffer = first if phase == "peak" else self.weight(first)
        return 1.0 + self.momentum * buffer if self.nesterov else buffer


def _gradients(
    module: TrainModule, expected: Expected, rules: Rules, parameters: Mapping[str, nn.Parameter]
) -> dict[str, _Gradient]:
    """Gradients of about the size of eps, whose norm over the whole model is too small to be clipped."""
    _, _, eps = expected.optimizer()
    clip = float(expected.keys["gradient_clipping"] or 0.0)
    count = torch.tensor(float(sum(_shape(p).numel() for p in parameters.values())), device=module.runtime.device)
    total = float(module.runtime.mean(count)) * module.runtime.world_size
    limit = 0.5 * clip / (RATIO * math.sqrt(total)) if clip else math.inf
    found = {}
    for name, p in parameters.items():
        size = min(1e-3 if expected.keys["optimizer_type"] == "sgd" else eps * rules[name].eps, limit)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))  # copies of a weight get the same signs
        shape = _shape(p)
        signs = torch.randint(0, 2, shape, generator=generator).to(p.device) * 2.0 - 1.0
        odd = (torch.arange(shape.numel(), device=p.device) % 2 == 1).view(shape)
        found[name] = _Gradient(signs, odd, 2.0 ** math.floor(math.log2(size or 1e-8)))  # exact in bf16
    return found


def _compare(
    row: AuditRow,
    phase: str,
    change: Tensor,
    before: Tensor,
    gradient: _Gradient,
    rule: Expectation,
    expected: Expected,
) -> None:
    """Fit change = -a (even signs) - b (odd signs) - c weight, and compare lr, eps and decay with the expectation."""
    signs, odd = gradient.signs.double().flatten(), gradient.odd.flatten()
    columns = [signs * ~odd, signs * odd]
    size = float(before.square().mean().sqrt())
    # a weight that starts at zero is a multiple of the signs after the first update
    decays = size > 0 and (rule.value > 0 or any(std > 0 for *_, std in rule.parts))
    if decays:
        columns.append(before)
    if len(change) < 8 or (phase == "decay" and rule.decay and not decays):
        return
    fit = [-x for x in torch.linalg.lstsq(torch.stack(columns, 1), change[:, None]).solution.flatten().tolist()]
    k = expected.phases()[phase]
    rate = expected.base_rate(k) * rule.lr
    share = expected.base_rate(k) / expected.base_rate(expected.phases()["peak"])
    noise = 8.0 * ROUNDING / math.sqrt(len(change))  # of one coefficient, over the size of the weights
    small, large, sgd = gradient.small, gradient.small * RATIO, expected.keys["optimizer_type"] == "sgd"
    factor = _Sgd(expected).factor(phase) if sgd else 1.0
    _, _, eps = expected.optimizer()
    if sgd:
        lr = fit[1] / (large * factor)
        # the second update also sees the decay of the first
        spread = noise * size / (large * factor * rate) + (1e-2 if phase == "decay" else 0.0)
    else:
        eps_found = large * (fit[0] - fit[1]) / (fit[1] - fit[0] * RATIO)
        lr = fit[0] * (small + eps_found) / small
        spread = 20.0 * noise * size / rate
        if spread < 0.05 and eps:
            row.compare(f"eps of the update at {phase}", eps_found, eps * rule.eps, 1e-2 + 10.0 * spread)
    if spread < 0.05:
        row.compare(f"lr of the update at {phase}", lr, rate, UPDATE + spread)
    if decays:
        decay = rule.decay * share if expected.independent_decay() else rule.decay * rate * factor
        row.compare(f"decay of the update at {phase}", fit[2], decay, 2e-2, noise * 4.0)
