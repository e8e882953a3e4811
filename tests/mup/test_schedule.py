"""MuScheduler with any torch scheduler, and Scheduler with a function: group lr = base rate x lr_mult."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as S

import mup
from mup import MuAdam, MuReadout, MuScheduler, MuSGD, Scheduler


def in_mup(width: int = 32) -> nn.Module:
    make = lambda w: nn.Sequential(nn.Linear(5, w), nn.Linear(w, w), MuReadout(w, 3))  # noqa: E731
    return mup.set_base_shapes(make(width), make(4), delta=make(8))


def sequence(optimizer: torch.optim.Optimizer) -> S.LRScheduler:
    parts = [S.LinearLR(optimizer, 0.1, total_iters=3), S.CosineAnnealingLR(optimizer, 7, eta_min=1e-3)]
    return S.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "lambda": (S.LambdaLR, {"lr_lambda": lambda t: 0.9**t}),
    "cosine": (S.CosineAnnealingLR, {"T_max": 10, "eta_min": 0.02}),
    "restarts": (S.CosineAnnealingWarmRestarts, {"T_0": 4, "eta_min": 0.02}),
    "one_cycle": (S.OneCycleLR, {"max_lr": 0.3, "total_steps": 12}),
    "sequence": (sequence, {}),
}


def reference(kind: str, optimizer: type, steps: int) -> list[float]:
    """Rates of the schedule for a single group with the base rate."""
    cls, kwargs = SCHEDULES[kind]
    single = optimizer([nn.Parameter(torch.zeros(()))], lr=0.1)
    scheduler, rates = cls(single, **kwargs), []
    for _ in range(steps):
        rates.append(single.param_groups[0]["lr"])
        single.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("make", "plain"), [(MuAdam, torch.optim.Adam), (MuSGD, torch.optim.SGD)])
def test_multipliers_hold_at_every_step_and_after_a_resume(kind: str, make: Any, plain: Any) -> None:
    cls, kwargs = SCHEDULES[kind]
    optimizer = make(in_mup(), lr=0.1)
    scheduler = MuScheduler(optimizer, cls, **kwargs)
    mults = [g["lr_mult"] for g in optimizer.param_groups]
    assert len(set(mults)) > 1
    for t, rate in enumerate(reference(kind, plain, 10)):
        assert scheduler.get_last_lr() == pytest.approx([rate * mult for mult in mults]), t
        assert scheduler.get_base_lr() == pytest.approx([rate] * len(mults))
        if t == 5:
            saved = (optimizer.state_dict(), scheduler.state_dict())
            optimizer = make(in_mup(), lr=0.1)
            scheduler = MuScheduler(optimizer, cls, **kwargs)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
            assert scheduler.get_last_lr() == pytest.approx([rate * mult for mult in mults])
        optimizer.step()
        scheduler.step()


def test_torchs_cosine_schedule_loses_the_multipliers() -> None:
    optimizer = MuAdam(in_mup(), lr=0.1)
    scheduler = S.CosineAnnealingLR(optimizer, 10, eta_min=0.02)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert len({g["lr"] for g in optimizer.param_groups}) == 1


def test_one_cycle_also_cycles_the_momentum() -> None:
    optimizer = MuAdam(in_mup(), lr=0.1)
    scheduler = MuScheduler(optimizer, S.OneCycleLR, max_lr=0.3, total_steps=10)
    first = optimizer.param_groups[0]["betas"]
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["betas"] != first


def test_reduce_on_plateau() -> None:
    optimizer = MuAdam(in_mup(), lr=0.1)
    scheduler = MuScheduler(optimizer, S.ReduceLROnPlateau, patience=0, factor=0.5, min_lr=0.01)
    for _ in range(8):
        scheduler.step(1.0)
    assert scheduler.get_last_lr() == pytest.approx([0.01 * g["lr_mult"] for g in optimizer.param_groups])


def test_tensor_rates_are_written_in_place() -> None:
    optimizer = MuAdam(in_mup(), lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]
    scheduler = MuScheduler(optimizer, S.LambdaLR, lr_lambda=lambda t: 0.5**t)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is held and float(held) == pytest.approx(0.05 / 8)


def test_groups_without_multiplier_and_a_state_of_other_groups() -> None:
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1)
    scheduler = MuScheduler(plain, S.LambdaLR, lr_lambda=lambda t: 0.5**t)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05]
    with pytest.raises(ValueError, match="1 parameter groups, but this optimizer has 2"):
        MuScheduler(MuAdam(in_mup(), lr=0.1), S.LambdaLR, lr_lambda=float).load_state_dict(scheduler.state_dict())


def test_a_scheduler_created_after_loading_the_optimizer_state() -> None:
    schedule = {"lr_lambda": lambda t: 0.5**t}
    optimizer = MuAdam(in_mup(), lr=0.1)
    scheduler = MuScheduler(optimizer, S.LambdaLR, **schedule)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    again = MuAdam(in_mup(), lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    resumed = MuScheduler(again, S.LambdaLR, **schedule)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.get_last_lr() == pytest.approx(scheduler.get_last_lr())


# ---- one base rate for all groups ------------------------------------------------------------------------------

MULTS = {"input": 1.0, "hidden.r4": 0.25, "wide": 3.0}


def groups_with(mults: dict[str, float], **changes: Any) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": n, "lr_mult": m} for n, m in mults.items()]
    groups[-1] |= changes
    return torch.optim.SGD(groups, lr=7.0)


def halving(step: int) -> float:
    return 0.5**step


def test_a_function_schedule_multiplies_the_rate_of_every_group() -> None:
    optimizer = groups_with(MULTS)
    scheduler = Scheduler(optimizer, halving)
    for step, increment in ((0, 1), (1, 1), (2, 3), (5, 1)):
        rates = [1.0 * 0.5**step, 0.25 * 0.5**step, 3.0 * 0.5**step]
        assert [g["lr"] for g in optimizer.param_groups] == rates == scheduler.get_last_lr() == scheduler.get_lr()
        assert (scheduler.get_base_lr(), scheduler.num_steps) == (0.5**step, step)
        scheduler.step(increment) if increment > 1 else scheduler.step()
    optimizer.param_groups[0]["lr"] = 9.0
    assert scheduler.get_last_lr()[0] == 9.0
    scheduler.apply()
    assert scheduler.get_last_lr()[0] == 0.5**6


def test_a_tensor_rate_is_updated_in_place() -> None:
    optimizer = groups_with(MULTS)
    tensor = optimizer.param_groups[1]["lr"] = torch.tensor(1.0)
    Scheduler(optimizer, halving).step()
    assert optimizer.param_groups[1]["lr"] is tensor and float(tensor) == 0.125


def test_a_function_schedule_resumes_and_refuses_other_multipliers() -> None:
    first = Scheduler(groups_with(MULTS), halving)
    first.step(3)
    again = Scheduler(groups_with(MULTS), halving)
    again.load_state_dict(first.state_dict())
    assert again.num_steps == 3 and again.get_last_lr() == first.get_last_lr()
    other = Scheduler(groups_with(MULTS | {"hidden.r4": 0.5}), halving)
    with pytest.raises(ValueError, match=r"hidden.r4: checkpoint 0.25, configuration 0.5"):
        other.load_state_dict(first.state_dict())
    assert other.num_steps == 0
    part = Scheduler(groups_with({"hidden.r4": 0.25}), halving, lr_mults=MULTS)
    part.load_state_dict(first.state_dict())
    assert part.get_last_lr() == [0.25 / 8]
    with pytest.raises(
        ValueError, match="lr_mults: the groups of this optimizer have other multipliers: {'hidden.r4': 0.5}"
    ):
        Scheduler(groups_with({"hidden.r4": 0.5}), halving, lr_mults=MULTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "input"}, "group 2: expected a unique name, got 'input'"),
        ({"name": None}, "group 2: expected a unique name, got None"),
        ({"lr_mult": -0.1}, "'wide': expected a finite lr_mult of at least 0, got -0.1"),
        ({"lr_mult": float("inf")}, "expected a finite lr_mult of at least 0, got inf"),
        ({"lr_mult": "1"}, "expected a finite lr_mult of at least 0, got '1'"),
    ],
)
def test_invalid_groups_of_a_function_schedule_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(groups_with(MULTS, **changes), halving)


@pytest.mark.parametrize("change", [{"lr_mult": 1.0}, {"name": "other"}, {"name": None}])
def test_multipliers_are_fixed_for_a_run(change: dict[str, Any]) -> None:
    optimizer = groups_with(MULTS)
    scheduler = Scheduler(optimizer, halving)
    optimizer.param_groups[1] |= change
    with pytest.raises(RuntimeError, match="multipliers are fixed for a run"):
        scheduler.step()


def test_a_multiplier_of_zero_freezes_a_group() -> None:
    optimizer = groups_with({"frozen": 0.0, "free": 1.0})
    Scheduler(optimizer, halving)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 1.0]
