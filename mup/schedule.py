"""Learning-rate schedules that keep muP's multipliers: the lr of a group is the base rate times lr_mult.

torch's schedulers write absolute numbers into the groups (`eta_min`, `max_lr`), which loses the multipliers.
MuScheduler runs them on a shadow optimizer with the base rates and writes the products to the real groups.
Scheduler has one base rate for all groups, a function of the number of updates.

    scheduler = MuScheduler(optimizer, CosineAnnealingLR, T_max=1000, eta_min=1e-5)
    scheduler = Scheduler(optimizer, lambda step: 1e-3 * 0.99**step)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["HasParamGroups", "MuScheduler", "Scheduler", "differences"]


class HasParamGroups(Protocol):
    """Any optimizer: one of torch, or the wrapper of an engine around one."""

    param_groups: list[dict[str, Any]]


def _write_rates(groups: Iterable[dict[str, Any]], rates: Iterable[float]) -> None:
    for group, rate in zip(groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # compiled and captured steps keep a reference to the tensor
        else:
            group["lr"] = rate


def _rates(groups: Iterable[dict[str, Any]]) -> list[float]:
    return [float(group["lr"]) for group in groups]


_NOT_BASE = ("params", "param_names", "initial_lr")


class _Shadow(Optimizer):
    """An optimizer without a model: the groups of another optimizer with their base rates."""

    def __init__(self, real: Optimizer) -> None:
        groups = []
        for group in real.param_groups:
            own = {key: value for key, value in group.items() if key not in _NOT_BASE}
            # initial_lr, set by an earlier schedule, is the rate before any decay (torch's schedulers also read it)
            own["lr"] = float(group.get("initial_lr", group["lr"])) / group.get("lr_mult", 1.0)
            groups.append(own | {"params": [nn.Parameter(torch.zeros(()))]})
        super().__init__(groups, dict(real.defaults))
        self._opt_called = True  # only the real optimizer is stepped; without this, schedulers warn

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing: there are no gradients."""


class MuScheduler:
    """A torch scheduler whose rates are multiplied by the `lr_mult` of each group.

    optimizer: any optimizer with `lr_mult` in its groups (by default 1).
    scheduler: a torch scheduler class, or a function of an optimizer. It receives kwargs, in which rates are base
    rates. Momentum and betas that it cycles are copied unchanged.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Callable[..., Any], **kwargs: Any) -> None:
        self.optimizer = optimizer
        self._shadow = _Shadow(optimizer)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self.scheduler = scheduler(self._shadow, **kwargs)
        self._write()

    def _write(self) -> None:
        groups = self.optimizer.param_groups
        _write_rates(groups, (base * group.get("lr_mult", 1.0) for base, group in zip(self.get_base_lr(), groups)))
        for real, shadow in zip(groups, self._shadow.param_groups, strict=True):
            for key in ("momentum", "betas"):
                if key in shadow:
                    real[key] = shadow[key]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Advance the schedule and set the rates. The scheduler gets the arguments (ReduceLROnPlateau: a metric)."""
        self.scheduler.step(*args, **kwargs)
        self._write()

    def get_base_lr(self) -> list[float]:
        """Base rate of each group, without lr_mult."""
        return _rates(self._shadow.param_groups)

    def get_last_lr(self) -> list[float]:
        """Rate of each group, including lr_mult."""
        return _rates(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """Position and base rates. The state does not depend on the width."""
        return {"scheduler": self.scheduler.state_dict(), "base_lr": self.get_base_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume. Call it after load_state_dict of the optimizer. The multipliers of this optimizer are kept."""
        if len(state_dict["base_lr"]) != len(self._shadow.param_groups):
            raise ValueError(
                f"the schedule was saved with {len(state_dict['base_lr'])} parameter groups, "
                f"but this optimizer has {len(self._shadow.param_groups)}"
            )
        self.scheduler.load_state_dict(state_dict["scheduler"])
        for group, rate in zip(self._shadow.param_groups, state_dict["base_lr"], strict=True):
            group["lr"] = rate
        self._write()


class Scheduler:
    """Sets the `lr` of every group to base rate x `lr_mult`, at construction and after each step.

    The ratios between groups are therefore constant, and a floor of the schedule is also multiplied.

    optimizer: its groups have a unique `name` and an `lr_mult`. The scheduler keeps a copy of both and raises
    RuntimeError if a group changes.
    schedule: base rate of update k, starting at 0.
    lr_mults: name -> multiplier for the whole model, if this process holds a part of it. It is saved with the state
    and compared when the state is loaded under any layout. By default it contains the groups of this optimizer.
    Raises ValueError if a group has no name or multiplier, or does not agree with lr_mults.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        schedule: Callable[[int], float],
        *,
        lr_mults: Mapping[str, float] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.num_steps = 0
        own = _group_multipliers(optimizer)
        self.lr_mults = dict(own if lr_mults is None else lr_mults)
        if missing := {name: mult for name, mult in own.items() if self.lr_mults.get(name) != mult}:
            raise ValueError(f"lr_mults: the groups of this optimizer have other multipliers: {missing}")
        self.apply()

    def step(self, increment: int = 1) -> None:
        """Advance by `increment` updates."""
        self.num_steps += increment
        self.apply()

    def apply(self) -> None:
        """Set the rates of the groups for the next update. Call it after any code that rewrites the groups."""
        _write_rates(self.optimizer.param_groups, self.get_lr())

    def get_lr(self) -> list[float]:
        """Rates of the next update, one per group."""
        base = self.get_base_lr()
        return [base * self._multiplier(group) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Current rates of the groups, like the method of torch's schedulers."""
        return _rates(self.optimizer.param_groups)

    def get_base_lr(self) -> float:
        """Base rate of the next update, without multipliers. This is the rate to log."""
        return self.schedule(self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and multipliers."""
        return {"num_steps": self.num_steps, "lr_mults": dict(self.lr_mults)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. If the multipliers differ, raises ValueError and changes nothing."""
        rows = differences(state["lr_mults"], self.lr_mults)
        if rows:
            raise ValueError("the saved learning-rate multipliers differ:\n" + "\n".join(rows))
        self.num_steps = int(state["num_steps"])
        self.apply()

    def _multiplier(self, group: Mapping[str, Any]) -> float:
        name = group.get("name")
        mult = self.lr_mults.get(name) if isinstance(name, str) else None
        if mult is None or group.get("lr_mult") != mult:
            raise RuntimeError(
                f"parameter group {name!r} has lr_mult {group.get('lr_mult')!r}, but the scheduler was built "
                f"with {mult!r}: multipliers are fixed for a run"
            )
        return mult


def _group_multipliers(optimizer: HasParamGroups) -> dict[str, float]:
    """Map name -> lr_mult. Raises ValueError if a group lacks one of them, or a name is used twice."""
    mults: dict[str, float] = {}
    for index, group in enumerate(optimizer.param_groups):
        name, mult = group.get("name"), group.get("lr_mult")
        if not isinstance(name, str) or name in mults:
            raise ValueError(f"parameter group {index}: expected a unique name, got {name!r}")
        if not isinstance(mult, int | float) or not math.isfinite(mult) or mult < 0:
            raise ValueError(f"parameter group {name!r}: expected a finite lr_mult of at least 0, got {mult!r}")
        mults[name] = float(mult)
    return mults


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line per entry that differs, sorted by name."""
    return [
        f"  {name}: checkpoint {saved.get(name, 'absent')}, configuration {current.get(name, 'absent')}"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]
