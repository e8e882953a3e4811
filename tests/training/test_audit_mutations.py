"""Mutations of rules, plan, resolver, groups, schedule, optimizer and layers: the audit sees each, and names it.

And correct configurations, in which it finds nothing. `pytest -s -m slow -k is_seen` prints a table: one line per
mutation with the quantities in which the audit sees it, and the modules whose slopes fail in the coordinate check.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron.audit.run import ModelAudit, run_audit
from megatron.errors import UserError
from megatron.initialize import initialize_megatron
from megatron.model import attention, block, build, embedding, layers, moe
from megatron.neox_arguments.resolve import audit_config
from megatron.training import engine, optimizer
from megatron.training.learning_rates import LearningRateSchedule, Scheduler
from mup import rules
from mup.init_methods import InitMethods
from mup.rules import ONE, Power, Role
from mup.slopes import verdict
from tests.training.harness import arguments, configuration, coordinate_records

TUNED = {"mup_embedding_mult": 3.0, "mup_output_temp": 2.0, "mup_attn_temp": 0.5, "mup_init_scale": 0.7}
DEEP = {"mup_base_num_layers": 1, "mup_depth_alpha": 1.0}
FIXED = {"num_kv_heads": 1, "mup_base_num_kv_heads": 1}
EXPERTS = {"moe_num_experts": 4, "moe_top_k": 2, "moe_router_type": "topk"}
SCALENORM = {"norm": "scalenorm"}
SGD = {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}}
Patch = pytest.MonkeyPatch


def audit(corpus: Any, folder: Any, **changes: Any) -> ModelAudit:
    config = configuration(corpus, folder, **changes)
    return run_audit(audit_config(arguments(config)), initialize_megatron())


def coordinate_check(corpus: Any, folder: Any, **changes: Any) -> str:
    """The kinds of modules that fail in the coordinate check, or how it ends otherwise."""
    try:
        found = verdict(coordinate_records(corpus, folder, **changes))
    except UserError as error:
        return f"stops: {error}"
    return ", ".join(sorted({row.module for row in found.failures})) or "passes"


def cell(role: Role, family: rules.Family = rules.Family.ADAM, **changes: Any) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        column = {**rules.TABLE[family], role: dataclasses.replace(rules.TABLE[family][role], **changes)}
        patch.setattr(rules, "TABLE", {**rules.TABLE, family: column})

    return mutate


def resolved(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Change the resolved parametrization, as a mistake in the reader of the configuration would."""

    def mutate(patch: Patch) -> None:
        make = audit_config.__globals__["model_config"]

        def changed(args: Any) -> Any:
            config = make(args)
            return dataclasses.replace(config, parametrization=change(config.parametrization))

        patch.setitem(audit_config.__globals__, "model_config", changed)

    return mutate


def keys(**changes: Any) -> Callable[[Any], Any]:
    return lambda config: dataclasses.replace(config, **{k: v(config) for k, v in changes.items()})


def groups(change: Callable[[dict[str, Any]], Any]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        make = engine.parameter_groups

        def changed(*args: Any, **options: Any) -> Any:
            made = make(*args, **options)
            for group in made:
                change(group)
            return made

        patch.setattr(engine, "parameter_groups", changed)
        patch.setattr(engine, "learning_rate_multipliers", lambda plans: None)

    return mutate


def factors(**changes: Callable[[Any], float]) -> Callable[[Patch], None]:
    def mutate(patch: Patch) -> None:
        make = build.forward_factors

        def changed(*args: Any) -> Any:
            made = make(*args)
            return dataclasses.replace(made, **{name: change(made) for name, change in changes.items()})

        patch.setattr(build, "forward_factors", changed)

    return mutate


def method(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def rates(change: Callable[[Any, dict[str, Any], float], float]) -> Callable[[Patch], None]:
    """Scheduler.apply with `change(scheduler, group, base rate)` as the rate of a group."""

    def apply(self: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = change(self, group, self.schedule(self.num_steps))

    return lambda patch: patch.setattr(Scheduler, "apply", apply)


class _NoGradient(torch.autograd.Function):
    """x * factor, whose backward pass forgets the factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


def forgetful(old: Any) -> Any:
    def forward(self: Any, tokens: torch.Tensor, offset: int = 0) -> Any:
        return _NoGradient.apply(self.word_embeddings(tokens), self.mult)

    return forward


def second_layer(old: Any) -> Any:
    """A wrong attention scale in the last layer only."""
    made: list[Any] = []

    def __init__(self: Any, scale: float, *args: Any) -> None:
        made.append(self)
        old(self, scale * (2.0 if len(made) % 2 == 0 else 1.0), *args)

    return __init__


def one_branch(name: str) -> Callable[[Any], Any]:
    """A block whose branch `name` lacks the depth factor."""

    def make(old: Any) -> Any:
        def forward(self: Any, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
            a, f = (1.0 if name == n else self.residual_mult for n in ("attention", "mlp"))
            x = x + a * self.attention(self.input_layernorm(x), cache)
            return x + f * self.mlp(self.post_attention_layernorm(x))

        return forward

    return make


def head_scaled(old: Any) -> Any:
    def forward(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any = None) -> torch.Tensor:
        q = q.clone()
        q[:, -1] = q[:, -1] * 2
        result: torch.Tensor = old(self, q, k, v, bias=bias)
        return result

    return forward


def times(group: dict[str, Any], key: str, factor: float, role: str | None = None) -> None:
    if role is None or group["role"] == role:
        group[key] *= factor


def no_decay_follow(old: Any) -> Any:
    def step(self: Any, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["peak_lr"] = group["lr"]
        return old(self, closure)

    return step


M = Power(width=-1)
MUTATIONS: dict[str, tuple[Callable[[Patch], None], dict[str, Any]]] = {
    # the resolver
    "temperatures exchanged": (
        resolved(keys(attn_temp=lambda c: c.output_temp, output_temp=lambda c: c.attn_temp)),
        TUNED,
    ),
    "attention temperature dead": (resolved(keys(attn_temp=lambda c: 1.0)), TUNED),
    "output temperature dead": (resolved(keys(output_temp=lambda c: 1.0)), TUNED),
    "output temperature multiplies": (resolved(keys(output_temp=lambda c: 1 / c.output_temp)), TUNED),
    "attention temperature multiplies": (resolved(keys(attn_temp=lambda c: 1 / c.attn_temp)), TUNED),
    "embedding multiplier dead": (resolved(keys(embedding_mult=lambda c: 1.0)), TUNED),
    "init scale dead": (resolved(keys(init_scale=lambda c: 1.0)), TUNED),
    "init scale squared": (resolved(keys(init_scale=lambda c: c.init_scale**2)), TUNED),
    "base heads ignored": (
        resolved(keys(base=lambda c: dataclasses.replace(c.base, num_attention_heads=4, num_kv_heads=4))),
        {},
    ),
    "base layers ignored": (resolved(keys(base=lambda c: dataclasses.replace(c.base, num_layers=2))), DEEP),
    "depth alpha ignored": (resolved(keys(depth_alpha=lambda c: 0.0)), DEEP),
    "decay mode ignored": (resolved(keys(weight_decay_mode=lambda c: "scaled")), {"mup_weight_decay_mode": "constant"}),
    "independent decay ignored": (
        resolved(keys(weight_decay_mode=lambda c: "constant")),
        {"mup_weight_decay_mode": "independent"},
    ),
    "query zero init ignored": (resolved(keys(query_zero_init=lambda c: False)), {"mup_query_zero_init": True}),
    "readout zero init ignored": (resolved(keys(readout_zero_init=lambda c: False)), {"mup_readout_zero_init": True}),
    "muP ignored": (resolved(keys(mup=lambda c: False)), {}),
    # the rules and the plan
    "hidden lr unscaled": (cell(Role.HIDDEN, lr=ONE), {}),
    "hidden std unscaled": (cell(Role.HIDDEN, init_std=ONE), {}),
    "hidden std over r": (cell(Role.HIDDEN, init_std=Power(fan_in=-1)), {}),
    "hidden eps unscaled": (cell(Role.HIDDEN, eps=ONE), {}),
    "hidden eps the wrong way": (cell(Role.HIDDEN, eps=Power(width=1)), {}),
    "embedding eps unscaled": (cell(Role.INPUT, eps=ONE), {}),
    "vector eps unscaled": (cell(Role.VECTOR, eps=ONE), {}),
    "readout eps unscaled": (cell(Role.OUTPUT, eps=ONE), {}),
    "embedding lr over m": (cell(Role.INPUT, lr=M), {}),
    "vectors at lr over m": (cell(Role.VECTOR, lr=M), {}),
    "readout lr over m": (cell(Role.OUTPUT, lr=M), {}),
    "vectors decayed": (cell(Role.VECTOR, weight_decay=ONE), {}),
    "hidden decay unscaled": (cell(Role.HIDDEN, weight_decay=ONE), {}),
    "value rule removed": (cell(Role.VALUE, init_std=Power(fan_in=-0.5)), FIXED),
    "SGD vector by the width of the model": (
        cell(Role.VECTOR, rules.Family.SGD, lr=Power(width=1)),
        SGD | {"use_qk_layernorm": True},
    ),
    "SGD hidden lr over r": (cell(Role.HIDDEN, rules.Family.SGD, lr=Power(fan_in=-1)), SGD | FIXED),
    "readout multiplier missing": (factors(logits=lambda f: 1.0), {}),
    "readout multiplier as a square root": (factors(logits=lambda f: math.sqrt(f.logits)), {}),
    "attention by the square root": (factors(attention=lambda f: 0.25), {"num_attention_heads": 1}),
    "output projections with 2L of the target": (
        method(
            InitMethods,
            "base_std",
            lambda old: lambda s, m, i, o, b: old(s, m, i, o, dataclasses.replace(b, num_layers=2)),
        ),
        DEEP,
    ),
    "formulas at the width of the target": (
        method(
            InitMethods,
            "base_std",
            lambda old: lambda s, m, i, o, b: old(s, m, i, o, dataclasses.replace(b, hidden_size=64)),
        ),
        {"init_method": "small_init"},
    ),
    "final norm under the depth rule": (
        lambda patch: patch.setattr(
            "megatron.parametrization.plan.in_block", lambda name: not name.startswith(("embedding", "readout"))
        ),
        DEEP | {"mup_depth_alpha": 0.5},
    ),
    "readout under the depth rule": (
        lambda patch: patch.setattr("megatron.parametrization.plan.in_block", lambda name: True),
        DEEP | {"mup_depth_alpha": 0.5},
    ),
    # groups, schedule, optimizer
    "groups without lr_mult": (groups(lambda g: g.update(lr_mult=1.0)), {}),
    "decay in the groups doubled": (groups(lambda g: times(g, "weight_decay", 2.0)), {}),
    "schedule resets the groups": (rates(lambda s, g, base: base), {}),
    "warmup without lr_mult": (rates(lambda s, g, base: base * (g["lr_mult"] if s.num_steps >= 2 else 1.0)), {}),
    "decay without lr_mult": (rates(lambda s, g, base: base * (g["lr_mult"] if s.num_steps < 3 else 1.0)), {}),
    "min_lr without lr_mult": (rates(lambda s, g, base: max(base * g["lr_mult"], 0.001)), {}),
    "cosine from the first step": (
        method(LearningRateSchedule, "_decay", lambda old: lambda self, step: old(self, step + self.warmup_iters)),
        {},
    ),
    "warmup one step late": (method(LearningRateSchedule, "_warmup", lambda old: lambda self, n: old(self, n - 1)), {}),
    "decay coupled to the gradient": (
        lambda patch: patch.setattr(
            optimizer.AdamW,
            "__init__",
            functools.partialmethod(lambda self, *a, **k: torch.optim.Adam.__init__(self, *a, **k)),
        ),
        {},
    ),
    "independent decay does not follow the schedule": (
        method(optimizer.AdamW, "step", no_decay_follow),
        {"mup_weight_decay_mode": "independent"},
    ),
    "betas exchanged": (
        method(
            engine,
            "make_optimizer",
            lambda old: lambda kind, groups, **k: old(kind, groups, **{**k, "betas": k["betas"][::-1]}),
        ),
        {},
    ),
    # the layers
    "embedding multiplier missing in the gradient": (method(embedding.Embedding, "forward", forgetful), TUNED),
    "attention scale wrong in the last layer": (method(attention.CoreAttention, "__init__", second_layer), {}),
    "attention scale wrong in the last head": (method(attention.CoreAttention, "forward", head_scaled), {}),
    "MLP without the depth factor": (method(block.Block, "forward", one_branch("mlp")), DEEP),
    "attention without the depth factor": (method(block.Block, "forward", one_branch("attention")), DEEP),
    "router without its multiplier": (
        method(moe.Router, "forward", lambda old: lambda self, x: F.linear(x, self.weight)),
        EXPERTS,
    ),
    "scalenorm falls with the width": (factors(norm=lambda f: 1.0), SCALENORM),
    "scalenorm of heads falls with the width": (
        factors(head_norm=lambda f: 1.0),
        SCALENORM | {"use_qk_layernorm": True, "num_attention_heads": 1},
    ),
    "scalenorm over a mean": (
        method(layers.ScaleNorm, "forward", lambda old: lambda self, x: old(self, x) * x.shape[-1] ** 0.5),
        SCALENORM,
    ),
    "logits divided twice": (
        method(embedding.Readout, "forward", lambda old: lambda self, x, w=None: old(self, x * self.mult, w)),
        {},
    ),
}

WIDE: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 24, "num_layers": 3}
CORRECT: list[dict[str, Any]] = [
    {}, {"use_mup": False}, TUNED, DEEP, DEEP | {"mup_depth_alpha": 0.5}, FIXED, EXPERTS, SGD,
    {"no_weight_tying": False}, {"pos_emb": "none"},
    {"no_weight_tying": False, "pos_emb": "learned", "max_position_embeddings": 16},
    {"num_kv_heads": 2, "mup_base_num_attention_heads": 2, "mup_base_num_kv_heads": 1},
    {"activation": "swiglu", "norm": "rmsnorm"}, {"activation": "geglu", "mlp_multiple_of": 8},
    {"use_qk_layernorm": True}, {"use_qk_layernorm": True, **SGD}, {"gpt_j_residual": True},
    {"gpt_j_residual": True, "gpt_j_tied": True}, {"mup_weight_decay_mode": "constant"},
    {"mup_weight_decay_mode": "independent"}, {"mup_weight_decay_mode": "independent", **SGD},
    {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9, "nesterov": True}}},
    {"precision": "bfloat16"}, {"precision": "bfloat16", "zero_optimization": {"stage": 2}},
    {"zero_optimization": {"stage": 1}}, {"zero_optimization": {"stage": 3}},
    {"mup_readout_zero_init": True, "mup_query_zero_init": True}, {"mup_eps_scaling": False},
    {"lr_decay_style": "wsd", "warmup": 0.0}, {"lr_decay_style": "linear", "warmup_style": "inverse_log"},
    {"lr_decay_style": "exponential"}, {"init_method": "xavier_uniform", "output_layer_init_method": "wang_init"},
    {"init_method": "small_init"}, {"init_method": "orthogonal"}, {"mup_base_hidden_size": 128},
    {"intermediate_size": 64, "mup_base_intermediate_size": 64}, {"sliding_window_width": 3},
    {"pos_emb": "alibi"}, {"pos_emb": "rpe"}, {"pos_emb": "rpe", "use_mup": False}, {"pos_emb": "rpe", **SGD},
    {"pos_emb": "rpe", "mup_rp_embedding_mult": 3.0, "num_attention_heads": 2, "mup_base_num_attention_heads": 2},
    {"optimizer": {"type": "Adam", "params": {"lr": 0.01, "eps": 1e-4}}}, {"gradient_clipping": 0.0},
    SCALENORM, SCALENORM | {"use_mup": False}, SCALENORM | SGD, {"norm": "non_parametric_layernorm"},
    SCALENORM | DEEP | {"use_qk_layernorm": True, "num_attention_heads": 2, "mup_base_num_attention_heads": 2},
    {"pos_emb": "sinusoidal"}, {"pos_emb": "sinusoidal", **TUNED},
    {"pos_emb": "learned", "opt_pos_emb_offset": 2, "max_position_embeddings": 18},
    WIDE, {"hidden_size": 1024, "num_attention_heads": 64},
    *({"seed": seed} for seed in range(1, 11)),
]  # fmt: skip

QUICK = {
    "temperatures exchanged",
    "embedding multiplier missing in the gradient",
    "attention scale wrong in the last head",
}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MUTATIONS])
def test_each_mutation_is_seen(corpus: Any, tmp_path: Any, monkeypatch: Patch, name: str) -> None:
    mutate, changes = MUTATIONS[name]
    mutate(monkeypatch)
    rows = [row for row in audit(corpus, tmp_path, **changes).rows if not row.passed]
    seen = sorted({fault for row in rows for fault in row.departures})
    check = "" if name in QUICK else f" | check: {coordinate_check(corpus, tmp_path, **changes)}"
    print(f"{name} | audit: {', '.join(seen)}{check}")
    assert rows, f"the audit does not see: {name}"


@pytest.mark.parametrize("changes", [c if c == WIDE else pytest.param(c, marks=pytest.mark.slow) for c in CORRECT])
def test_no_false_alarm(corpus: Any, tmp_path: Any, changes: dict[str, Any]) -> None:
    found = audit(corpus, tmp_path, **changes)
    assert found.passed, [(row.name, row.faults) for row in found.rows if not row.passed]
