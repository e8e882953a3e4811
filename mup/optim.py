"""Optimizers with muP's learning rates: they split the caller's groups by width multiplier.

    optimizer = MuAdam(model.parameters(), lr=1e-3)            # or the model itself, or model.named_parameters()
    optimizer = MuAdam(model.parameters(), impl=Lion, lr=1e-4)  # any sign-like method
    optimizer = MuSGD(model.parameters(), impl=ASGD, lr=0.1)    # any method whose update does

Every group carries `lr_mult`, `width_mult` and `name`; mup.schedule keeps the multipliers under any scheduler.
Source of the factors: mup.rules. `param_groups` makes the groups by role, with the whole table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mup.groups import Group, group_parameters, scaled
from mup.infshape import ShapeError
from mup.plan import planned
from mup.roles import attach, describe, infshape_of
from mup.rules import INNER, Options, parameter_scaling

__all__ = ["MuAdam", "MuAdamW", "MuSGD", "param_groups", "process_param_groups"]

Params = nn.Module | Iterable[Any]  # model; parameters, (name, parameter) pairs or groups of either
Implementation = Callable[..., Any]


def process_param_groups(params: Params, impl: Implementation | None = None, **kwargs: Any) -> list[Group]:
    """The caller's parameters as groups of their own, each with `lr` and `weight_decay`.

    impl: the optimizer whose default weight decay holds where none is given (0 without it).
    Raises ValueError when a group has no lr, or there is no parameter.
    """
    if isinstance(params, nn.Module):
        params = attach(params).parameters()
    given = list(params)
    if not given:
        raise ValueError("the optimizer got no parameters")
    if not isinstance(given[0], dict):
        given = [{"params": given}]
    groups = []
    for group in given:
        own = dict(group)
        own["params"] = [own["params"]] if isinstance(own["params"], Tensor) else list(own["params"])
        own.setdefault("lr", kwargs.get("lr"))
        if own["lr"] is None:
            raise ValueError("lr is missing: pass lr=... to the optimizer, or set it in every parameter group")
        own.setdefault("weight_decay", kwargs.get("weight_decay", _default(impl, "weight_decay", 0.0)))
        groups.append(own)
    return groups


def _default(impl: Implementation | None, name: str, otherwise: Any) -> Any:
    try:
        parameter = None if impl is None else inspect.signature(impl).parameters.get(name)
    except ValueError:  # a builtin without a signature
        parameter = None
    return otherwise if parameter is None or parameter.default is parameter.empty else parameter.default


class _Kind(NamedTuple):
    """Key of a group: its label, learning-rate factor, and the width multiplier that it comes from."""

    rank: int  # matrices first, then vectors, then what has no width, as the original orders groups
    label: str
    lr_mult: float
    width_mult: float


def _kind(item: Any, optimizer: str) -> _Kind:
    name, parameter = item if isinstance(item, tuple) else ("", item)
    shape = infshape_of(parameter, name)
    role, r, s, m = describe(shape)
    if shape.role is None and (shape.ninf() == 0 or (optimizer == "adam" and shape.ninf() == 1)):
        # the original has one such group for Adam, and one of finite parameters for SGD
        return _Kind(2, "fixed" if optimizer == "sgd" else "vector", 1.0, 1.0)
    options = Options(optimizer=optimizer)
    lr = parameter_scaling(role, fan_in_mult=r, fan_out_mult=s, width_mult=m, options=options).lr
    if role in INNER:
        return _Kind(0, role.value, lr, r if optimizer == "adam" else r / s)
    return _Kind(1 if optimizer == "sgd" else 2, "vector", lr, m if optimizer == "sgd" else 1.0)


def _split(params: Params, impl: Implementation, optimizer: str, decoupled: bool, kwargs: Group) -> list[Group]:
    split: list[Group] = []
    given = process_param_groups(params, impl, **kwargs)
    for i, group in enumerate(given):
        kinds: dict[_Kind, list[Any]] = {}
        for item in group["params"]:
            kinds.setdefault(_kind(item, optimizer), []).append(item)
        for kind in sorted(kinds, key=lambda kind: kind.rank):  # stable: first come, first within a rank
            name = f"{kind.label}_x{kind.width_mult:g}"
            prefix = group.get("name", f"group{i}" if len(given) > 1 else "")
            split.append(
                group
                | {
                    "params": kinds[kind],
                    "lr": scaled(group["lr"], kind.lr_mult),
                    "weight_decay": group["weight_decay"] * (1.0 if decoupled else 1.0 / kind.lr_mult),
                    "lr_mult": kind.lr_mult,
                    "width_mult": kind.width_mult,
                    "name": f"{prefix}/{name}" if prefix else name,
                }
            )
    return split


def _build(impl: Implementation, groups: list[Group], kwargs: Group) -> Any:
    optimizer = impl(groups, **kwargs)
    if isinstance(optimizer, Optimizer):
        optimizer.register_load_state_dict_pre_hook(refuse_other_width)
    return optimizer


def MuAdam(params: Params, impl: Implementation = Adam, decoupled_wd: bool = False, **kwargs: Any) -> Any:
    """Adam, or any optimizer `impl` of its kind, with the learning rate of hidden matrices divided by r.

    params: what torch takes, or the model. decoupled_wd: leave weight decay as it is, for an `impl` that does not
    multiply it by the learning rate; by default it is divided by the lr factor, so that lr * wd is constant.
    Raises ShapeError before set_base_shapes, ValueError without lr.
    """
    return _build(impl, _split(params, impl, "adam", decoupled_wd, kwargs), kwargs)


def MuAdamW(params: Params, **kwargs: Any) -> Any:
    """torch.optim.AdamW in muP; its default weight decay holds."""
    return MuAdam(params, **{"impl": AdamW, **kwargs})


def MuSGD(params: Params, impl: Implementation = SGD, decoupled_wd: bool = False, **kwargs: Any) -> Any:
    """SGD, or any optimizer of its kind: vectors and embeddings lr x m, hidden matrices lr x s / r."""
    return _build(impl, _split(params, impl, "sgd", decoupled_wd, kwargs), kwargs)


def refuse_other_width(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Optimizer pre-load hook: a state whose multipliers are another width's would change every learning rate."""
    theirs, ours = state_dict["param_groups"], optimizer.param_groups
    differing = [
        f"{own.get('name', i)}: {key} {other[key]:g} saved, {own[key]:g} here"
        for i, (own, other) in enumerate(zip(ours, theirs))
        for key in ("lr_mult", "width_mult")
        if key in own and key in other and abs(other[key] - own[key]) > 1e-9 * abs(own[key])
    ]
    if differing:
        raise ValueError("the optimizer state is of a model of another width: " + "; ".join(differing))


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float | None = None,
    options: Options = Options(),
    width_mult: float | None = None,
    depth_mult: float = 1.0,
    in_block: Callable[[str], bool] | None = None,
) -> list[Group]:
    """Optimizer groups by role, after the whole table: lr, weight decay (none for vectors) and eps.

    width_mult: m of the model, for eps; by default that of each matrix. eps: base value, or None to leave it out of
    the groups (as for optimizers without one). In mode `independent` the optimizer must not multiply wd by lr.
    in_block, depth_mult: which names belong to residual blocks, and mL, for `options.depth_alpha`.
    Raises ShapeError before set_base_shapes.
    """
    everything = planned(model, options, width_mult=width_mult, depth_mult=depth_mult, in_block=in_block)
    trained = [(parameter, plan) for parameter, plan in everything if parameter.requires_grad]
    if not trained:
        raise ShapeError("the model has no trainable parameters")
    return group_parameters(trained, [plan for _, plan in trained], lr=lr, weight_decay=weight_decay, eps=eps)
