"""Schedules that keep muP's multipliers: one base rate a step, and group lr = base rate x lr_mult.

torch's schedulers write absolute numbers into the groups (`eta_min`, `max_lr`), which loses the multipliers.
Here the scheduler runs on a shadow optimizer that holds the base rates, and the products go to the real groups.

    scheduler = MuScheduler(optimizer, CosineAnnealingLR, T_max=1000, eta_min=1e-5)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["MuScheduler"]


_NOT_BASE = ("params", "param_names", "initial_lr")


class _Shadow(Optimizer):
    """An optimizer without model: the groups of another one, at their base rates."""

    def __init__(self, real: Optimizer) -> None:
        groups = []
        for group in real.param_groups:
            own = {key: value for key, value in group.items() if key not in _NOT_BASE}
            # initial_lr, if an earlier schedule left it, is the rate before any decay (as torch's schedulers take it)
            own["lr"] = float(group.get("initial_lr", group["lr"])) / group.get("lr_mult", 1.0)
            groups.append(own | {"params": [nn.Parameter(torch.zeros(()))]})
        super().__init__(groups, dict(real.defaults))
        self._opt_called = True  # the real one is stepped; schedulers warn otherwise

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing to do: there are no gradients."""


class MuScheduler:
    """A torch scheduler whose rates are multiplied by each group's `lr_mult`.

    optimizer: any, with `lr_mult` in its groups (1 where absent). scheduler: a torch scheduler class or a function of
    an optimizer; kwargs go to it and are base rates. Momentum and betas that it cycles are passed on as they are.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Callable[..., Any], **kwargs: Any) -> None:
        self.optimizer = optimizer
        self._shadow = _Shadow(optimizer)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self.scheduler = scheduler(self._shadow, **kwargs)
        self._write()

    def _write(self) -> None:
        for real, shadow in zip(self.optimizer.param_groups, self._shadow.param_groups, strict=True):
            rate = float(shadow["lr"]) * real.get("lr_mult", 1.0)
            if isinstance(real["lr"], Tensor):
                real["lr"].fill_(rate)  # compiled and captured steps hold on to the tensor
            else:
                real["lr"] = rate
            for key in ("momentum", "betas"):
                if key in shadow:
                    real[key] = shadow[key]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Advance the schedule and set the rates. Arguments as of the scheduler (a metric for ReduceLROnPlateau)."""
        self.scheduler.step(*args, **kwargs)
        self._write()

    def get_base_lr(self) -> list[float]:
        """The base rate of each group, before lr_mult."""
        return [float(group["lr"]) for group in self._shadow.param_groups]

    def get_last_lr(self) -> list[float]:
        """The rate of each group, lr_mult included."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Position and base rates: nothing in it depends on the width."""
        return {"scheduler": self.scheduler.state_dict(), "base_lr": self.get_base_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; call it after the optimizer's own load_state_dict. The multipliers stay this optimizer's."""
        if len(state_dict["base_lr"]) != len(self._shadow.param_groups):
            raise ValueError(
                f"the schedule was saved for {len(state_dict['base_lr'])} parameter groups, "
                f"this optimizer has {len(self._shadow.param_groups)}"
            )
        self.scheduler.load_state_dict(state_dict["scheduler"])
        for group, rate in zip(self._shadow.param_groups, state_dict["base_lr"], strict=True):
            group["lr"] = rate
        self._write()
