"""Optimizers with muP's learning rates, which split the caller's parameter groups by width multiplier.

    optimizer = MuAdam(model.parameters(), lr=1e-3)            # or the model itself, or model.named_parameters()
    optimizer = MuAdam(model.parameters(), impl=Lion, lr=1e-4)  # any sign-like method
    optimizer = MuSGD(model.parameters(), impl=ASGD, lr=0.1)    # any method whose update scales with the gradient

Every group has `lr_mult`, `width_mult` and `name`. The schedulers of mup.schedule keep the multipliers.
The factors are those of mup.rules. `param_groups` creates groups by role with the whole table.
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
from mup.roles import attach, describe, infshape_of, ruled_fan_out
from mup.rules import INNER, Options, parameter_scaling

__all__ = ["MuAdam", "MuAdamW", "MuSGD", "param_groups", "process_param_groups"]

Params = nn.Module | Iterable[Any]  # a model; or parameters, (name, parameter) pairs, or groups of either
Implementation = Callable[..., Any]


def process_param_groups(params: Params, impl: Implementation | None = None, **kwargs: Any) -> list[Group]:
    """Copy the caller's parameters into new groups, each with `lr` and `weight_decay`.

    impl: the optimizer whose default weight decay is used if none is given (0 without impl).
    Raises ValueError if a group has no lr, or if there are no parameters.
    """
    if isinstance(params, nn.Module):
        params = attach(params).parameters()
    given = list(params)
    if not given:
        raise ValueError("params: the optimizer got no parameters")
    if not isinstance(given[0], dict):
        given = [{"params": given}]
    groups = []
    for group in given:
        own = dict(group)
        own["params"] = [own["params"]] if isinstance(own["params"], Tensor) else list(own["params"])
        own.setdefault("lr", kwargs.get("lr"))
        if own["lr"] is None:
            raise ValueError("lr is missing: pass lr=... to the optimizer, or set lr in every parameter group")
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
    """Key of a group: its label, its learning-rate factor, and the width multiplier behind the factor."""

    rank: int  # order of groups as in the original: matrices, vectors, parameters without a width
    label: str
    lr_mult: float
    width_mult: float


def _kind(item: Any, optimizer: str) -> _Kind:
    name, parameter = item if isinstance(item, tuple) else ("", item)
    shape = infshape_of(parameter, name)
    role, r, s, m = describe(shape)
    if shape.role is None and (shape.ninf() == 0 or (optimizer == "adam" and shape.ninf() == 1)):
        # the original has one group of these parameters for Adam, and one of finite parameters for SGD
        return _Kind(2, "fixed" if optimizer == "sgd" else "vector", 1.0, 1.0)
    options = Options(optimizer=optimizer)
    out = ruled_fan_out(role, s, m)
    lr = parameter_scaling(role, fan_in_mult=r, fan_out_mult=out, width_mult=m, options=options).lr
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
        for kind in sorted(kinds, key=lambda kind: kind.rank):  # stable: order of appearance within a rank
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
    """Adam, or an Adam-like optimizer `impl`, with the learning rate of hidden matrices divided by r.

    params: the argument of torch's optimizers, or the model.
    decoupled_wd: do not change the weight decay, for an `impl` that does not multiply it by the learning rate. By
    default weight decay is divided by the lr factor, so that lr * wd is constant.
    Raises ShapeError before set_base_shapes, and ValueError without lr.
    """
    return _build(impl, _split(params, impl, "adam", decoupled_wd, kwargs), kwargs)


def MuAdamW(params: Params, **kwargs: Any) -> Any:
    """torch.optim.AdamW in muP, with torch's default weight decay."""
    return MuAdam(params, **{"impl": AdamW, **kwargs})


def MuSGD(params: Params, impl: Implementation = SGD, decoupled_wd: bool = False, **kwargs: Any) -> Any:
    """SGD, or an SGD-like optimizer `impl`, with lr x m for vectors and embeddings, lr x s / r for hidden matrices.

    Arguments and errors are those of `MuAdam`.
    """
    return _build(impl, _split(params, impl, "sgd", decoupled_wd, kwargs), kwargs)


def refuse_other_width(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Optimizer pre-load hook: raise ValueError for the state of another width, which would change learning rates."""
    theirs, ours = state_dict["param_groups"], optimizer.param_groups
    differing = [
        f"{own.get('name', i)}: {key} {other[key]:g} saved, {own[key]:g} here"
        for i, (own, other) in enumerate(zip(ours, theirs))
        for key in ("lr_mult", "width_mult")
        if key in own and key in other and abs(other[key] - own[key]) > 1e-9 * abs(own[key])
    ]
    if differing:
        raise ValueError("the optimizer state belongs to a model of another width: " + "; ".join(differing))


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
    """Create optimizer groups by role, with the factors of the whole table on lr, weight decay and eps.

    Vectors have no weight decay.
    eps: base value; None leaves eps out of the groups, for optimizers without it.
    options: options of the rules. With weight_decay_mode `independent`, the optimizer must not multiply wd by lr.
    width_mult: m of the model, for eps; by default that of each matrix.
    depth_mult, in_block: mL, and which names belong to residual blocks, for `options.depth_alpha`.
    Raises ShapeError before set_base_shapes, or if no parameter is trainable.
    """
    everything = planned(model, options, width_mult=width_mult, depth_mult=depth_mult, in_block=in_block)
    trained = [(parameter, plan) for parameter, plan in everything if parameter.requires_grad]
    if not trained:
        raise ShapeError("the model has no trainable parameters")
    return group_parameters(trained, [plan for _, plan in trained], lr=lr, weight_decay=weight_decay, eps=eps)
