"""Optimizer groups: factors, and fixed mistakes of the original package."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import mup
from mup import MuAdam, MuAdamW, MuReadout, MuSGD, Options, param_groups


def mlp(width: int) -> Any:
    return nn.Sequential(nn.Linear(5, width), nn.Linear(width, 2 * width), MuReadout(2 * width, 3))


def in_mup(width: int = 16) -> Any:
    return mup.set_base_shapes(mlp(width), mlp(4), delta=mlp(8))


def train_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 5)).square().sum().backward()
    optimizer.step()


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, Any]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g[key] for g in optimizer.param_groups for p in g["params"]}


def test_every_parameter_is_in_one_group_in_the_callers_order() -> None:
    model = in_mup()
    for cls in (MuAdam, MuAdamW, MuSGD):
        groups = cls(model.parameters(), lr=0.1).param_groups
        assert len([p for g in groups for p in g["params"]]) == len({p for g in groups for p in g["params"]}) == 6
        for g in groups:
            order = [list(map(id, model.parameters())).index(id(p)) for p in g["params"]]
            assert order == sorted(order) and order
            assert {"lr_mult", "width_mult", "name"} <= g.keys()
            assert g["lr"] == pytest.approx(0.1 * g["lr_mult"])
        assert len({g["name"] for g in groups}) == len(groups)


@pytest.mark.parametrize("cls", [MuAdam, MuAdamW, MuSGD])
def test_there_are_no_empty_groups(cls: Any) -> None:
    """There are none if one kind of parameter is missing, or if a group of the caller is empty."""
    vectors = mup.set_base_shapes(nn.LayerNorm(16), nn.LayerNorm(4), delta=nn.LayerNorm(8))
    assert [len(g["params"]) for g in cls(vectors, lr=0.1).param_groups] == [2]
    groups = [{"params": []}, {"params": list(vectors.parameters())}]
    assert [len(g["params"]) for g in cls(groups, lr=0.1).param_groups] == [2]


def test_factors() -> None:
    model = in_mup()
    adam = by_name(model, MuAdam(model, lr=1.0, weight_decay=0.5), "lr")
    assert adam == {"1.weight": 0.25} | {n: 1.0 for n in adam if n != "1.weight"}
    decay = by_name(model, MuAdam(model, lr=1.0, weight_decay=0.5), "weight_decay")
    assert decay["1.weight"] == 2.0 and decay["0.weight"] == 0.5
    sgd = by_name(model, MuSGD(model, lr=1.0, weight_decay=0.5), "lr")
    assert sgd == {n: 1.0 if n == "1.weight" else 4.0 for n in sgd if n != "2.bias"} | {"2.bias": 1.0}


@pytest.mark.parametrize("cls", [MuAdam, MuAdamW, MuSGD])
def test_decoupled_weight_decay_is_not_scaled(cls: Any) -> None:
    model = in_mup()
    assert set(by_name(model, cls(model, lr=1.0, weight_decay=0.5, decoupled_wd=True), "weight_decay").values()) == {
        0.5
    }


def test_adamw_keeps_torchs_default_weight_decay() -> None:
    model = in_mup()
    decay = by_name(model, MuAdamW(model, lr=1.0), "weight_decay")
    assert decay["0.weight"] == torch.optim.AdamW(model.parameters()).defaults["weight_decay"] == 0.01
    assert decay["1.weight"] == 0.04  # lr * wd equals that at base width
    assert set(by_name(model, MuAdam(model, lr=1.0), "weight_decay").values()) == {0.0}


@pytest.mark.parametrize("cls", [MuAdam, MuAdamW, MuSGD])
def test_missing_lr_is_a_clear_error(cls: Any) -> None:
    with pytest.raises(ValueError, match="lr is missing"):
        cls(in_mup().parameters())
    with pytest.raises(ValueError, match="no parameters"):
        cls([], lr=1.0)


@pytest.mark.parametrize("cls", [MuAdam, MuAdamW])
def test_a_tensor_lr_is_not_aliased(cls: Any) -> None:
    lr = torch.tensor(0.1)
    optimizer = cls(in_mup().parameters(), lr=lr)
    values = [g["lr"] for g in optimizer.param_groups]
    assert len({v.data_ptr() for v in values} | {lr.data_ptr()}) == len(values) + 1
    values[0].fill_(9.0)
    assert float(values[1]) == pytest.approx(0.1) and float(lr) == pytest.approx(0.1)


def test_named_parameters_model_and_single_tensors() -> None:
    model = in_mup()
    plain = MuAdam(model.parameters(), lr=0.1)
    named = MuAdam(model.named_parameters(), lr=0.1)
    for optimizer in (named, MuAdam(model, lr=0.1)):
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in plain.param_groups]
    assert named.param_groups[0]["param_names"] == ["1.weight"]
    groups = [{"params": list(model[0].named_parameters())}, {"params": list(model[1].named_parameters())}]
    assert MuAdam(groups, lr=0.1).param_groups[1]["param_names"] == ["weight"]
    assert len(MuAdam([{"params": model[1].weight, "lr": 1.0}]).param_groups) == 1


def test_the_callers_groups_are_not_changed() -> None:
    model = in_mup()
    groups = [
        {"params": list(model.parameters())[:3], "lr": 0.5, "name": "low"},
        {"params": model[2].parameters()},
    ]
    frozen = copy.copy(groups[0]) | {"params": list(groups[0]["params"])}
    optimizer = MuAdam(groups, lr=0.1, betas=(0.8, 0.9))
    assert groups[0] == frozen and set(groups[1]) == {"params"}
    assert [g["name"] for g in optimizer.param_groups] == [
        "low/hidden_x4",
        "low/vector_x1",
        "group1/vector_x1",
    ]
    assert [g["lr"] for g in optimizer.param_groups] == [0.125, 0.5, 0.1]
    assert all(g["betas"] == (0.8, 0.9) for g in optimizer.param_groups)


def test_state_of_another_width_is_refused() -> None:
    model, other = in_mup(16), in_mup(64)
    for cls in (MuAdam, MuSGD):
        ours, theirs = cls(model, lr=0.1), cls(other, lr=0.1)
        train_once(other, theirs)
        with pytest.raises(ValueError, match="another width: .*saved.*here"):
            ours.load_state_dict(theirs.state_dict())
        train_once(model, ours)
        cls(in_mup(16), lr=0.1).load_state_dict(ours.state_dict())


def test_an_impl_that_is_not_a_torch_optimizer() -> None:
    seen = MuAdam(in_mup(), impl=lambda groups, lr, scale: (groups, scale), lr=0.1, scale=3)
    assert seen[1] == 3 and len(seen[0]) == 2


def test_frozen_tensors_without_width_are_in_the_last_group() -> None:
    make = lambda w: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, w), nn.Linear(w, w))  # noqa: E731
    model = mup.set_base_shapes(make(16), make(4), delta=make(8))
    names = [g["name"] for g in MuSGD(model, lr=0.1).param_groups]
    assert names == ["hidden_x1", "vector_x4", "fixed_x1"]


# ---- by role ---------------------------------------------------------------------------------------------------


def test_param_groups_follow_the_table() -> None:
    model = in_mup()
    options = Options(depth_alpha=0.0)
    groups = {g["name"]: g for g in param_groups(model, lr=1.0, weight_decay=0.1, eps=1e-8, options=options)}
    hidden = groups["hidden.r4"]
    assert (hidden["lr"], hidden["eps"], hidden["weight_decay"]) == (0.25, 2.5e-9, pytest.approx(0.4))
    assert {name.split(".")[0] for name in groups} == {"input", "hidden", "output", "vector", "vector#1"}
    assert all(g["weight_decay"] == 0 for name, g in groups.items() if name.startswith("vector"))
    of_model = {g["name"]: g for g in param_groups(model, lr=1.0, eps=1e-8, width_mult=2.0)}
    assert {name: g["eps"] for name, g in of_model.items()} == {
        # gradients of matrices decrease with m of the model, those of a vector with its own dimension
        name: {"vector": 2.5e-9, "vector#1": 1e-8}.get(name, 5e-9)
        for name in groups
    }
    sgd = param_groups(model, lr=1.0, width_mult=2.0, options=Options(optimizer="sgd"))
    assert {g["name"]: g["lr"] for g in sgd} == {"input": 4, "vector": 4, "hidden.r4": 1, "output": 4, "vector#1": 1}
    assert "eps" not in param_groups(model, lr=1.0, options=Options(optimizer="lion"))[0]


@pytest.mark.parametrize("mode", ["constant", "independent"])
def test_weight_decay_modes(mode: str) -> None:
    groups = param_groups(in_mup(), lr=1.0, weight_decay=0.1, options=Options(weight_decay_mode=mode))
    assert {g["weight_decay"] for g in groups} == {0.1, 0.0}


def test_frozen_parameters_are_in_no_group() -> None:
    model = in_mup()
    model[0].requires_grad_(False)
    assert sum(len(g["params"]) for g in param_groups(model, lr=1.0)) == 4
    with pytest.raises(ValueError, match="no trainable"):
        param_groups(model.requires_grad_(False), lr=1.0)


def test_param_groups_train() -> None:
    model = in_mup()
    before = [p.detach().clone() for p in model.parameters()]
    train_once(model, torch.optim.AdamW(param_groups(model, lr=0.1, eps=1e-8)))
    assert all(not torch.equal(p.detach(), b) for p, b in zip(model.parameters(), before, strict=True))
