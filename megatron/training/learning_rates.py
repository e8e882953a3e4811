"""The base learning rate of each step, and the scheduler that multiplies it for each optimizer group.

`schedule(k)` is the rate of update k; the first update is k = 0. During warmup GPT-NeoX and Mu-scaling use k where
this module uses k + 1. Their first update has rate 0 and changes nothing; ours has 1/W of the peak (W = warmup_iters).
From update W on, constant, linear, cosine and exponential equal those of GPT-NeoX. After `decay_iters`, linear and
cosine stay at their final value, whereas the cosine of GPT-NeoX rises again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import mup.schedule as mup_schedule
from megatron.errors import CheckpointError, ConfigError

DecayStyle = Literal["constant", "linear", "cosine", "exponential", "wsd"]
WarmupStyle = Literal["linear", "inverse_log"]
CooldownStyle = Literal["linear", "cosine", "sqrt"]


@dataclass(frozen=True)
class LearningRateSchedule:
    """The base learning rate as a pure function of the number of the update.

    lr: peak rate, reached at the last warmup update. min_lr: floor of the decay (warmup starts below it).
    decay_iters: updates from the first one to the end of the decay, including warmup (NeoX's `lr_decay_iters`, by
    default the length of the training). warmup_iters: updates with an increasing rate; 0 starts at the peak.

    decay_style, with p = (k - warmup_iters) / (decay_iters - warmup_iters):
      constant     lr
      linear       max(lr (1 - p), min_lr)
      cosine       min_lr + (lr - min_lr) (1 + cos(pi p)) / 2          (SGDR, arXiv:1608.03983, eq. 5)
      exponential  max(lr exp(-0.693 p), min_lr): NeoX's halving, which continues after decay_iters
      wsd          lr until the last `cooldown_iters`, then min_lr + (lr - min_lr) f(q), where q is the completed
                   fraction of the cooldown: f = 1 - q (linear), (1 + cos(pi q)) / 2 (cosine), 1 - sqrt(q) (sqrt).
                   Warmup-stable-decay: MiniCPM, arXiv:2404.06395; 1 - sqrt: arXiv:2405.18392

    warmup_style, for update k with n = k + 1 in 1..warmup_iters:
      linear       lr n / warmup_iters
      inverse_log  lr log(n + 1) / log(warmup_iters + 1): Mu-scaling's warmup log(n) / log(warmup_iters)
                   (arXiv:2304.06875, its released code), shifted by one so that the first update has an effect

    Raises ConfigError if the values are inconsistent.
    """

    lr: float
    decay_iters: int
    min_lr: float = 0.0
    warmup_iters: int = 0
    decay_style: DecayStyle = "linear"
    warmup_style: WarmupStyle = "linear"
    cooldown_iters: int = 0
    cooldown_style: CooldownStyle = "linear"

    def __post_init__(self) -> None:
        for name, choices in (
            ("decay_style", DecayStyle),
            ("warmup_style", WarmupStyle),
            ("cooldown_style", CooldownStyle),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"lr schedule: {name}: expected one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.min_lr <= self.lr < math.inf:
            raise ConfigError(f"lr schedule: expected 0 <= min_lr <= lr, got min_lr {self.min_lr} and lr {self.lr}")
        if self.decay_iters < 1 or self.warmup_iters < 0 or self.cooldown_iters < 0:
            raise ConfigError(
                "lr schedule: expected decay_iters of at least 1, and warmup_iters and cooldown_iters of at least 0, "
                f"got {self.decay_iters}, {self.warmup_iters} and {self.cooldown_iters}"
            )
        cooldown = self.cooldown_iters if self.decay_style == "wsd" else 0
        if self.decay_style != "constant" and self.warmup_iters + cooldown > self.decay_iters:
            raise ConfigError(
                f"lr schedule: warmup ({self.warmup_iters}) and cooldown ({cooldown}) are longer than "
                f"decay_iters ({self.decay_iters}) together"
            )

    def __call__(self, step: int) -> float:
        """Base learning rate of update `step`, starting at 0. Raises ValueError for a negative step."""
        if step < 0:
            raise ValueError(f"step: expected at least 0, got {step}")
        if step < self.warmup_iters:
            return self.lr * self._warmup(step + 1)
        return self._decay(step)

    def _warmup(self, n: int) -> float:
        if self.warmup_style == "inverse_log":
            return math.log(n + 1) / math.log(self.warmup_iters + 1)
        return n / self.warmup_iters

    def _decay(self, step: int) -> float:
        done = step - self.warmup_iters
        span = self.decay_iters - self.warmup_iters
        match self.decay_style:
            case "constant":
                return self.lr
            case "linear":
                return max(self.lr * (1.0 - _fraction(done, span)), self.min_lr)
            case "cosine":
                return self._between(_half_cosine(_fraction(done, span)))
            case "exponential":
                return max(self.lr * math.exp(-0.693 * done / max(span, 1)), self.min_lr)
            case "wsd":
                begin = self.decay_iters - self.cooldown_iters
                if step < begin or self.cooldown_iters == 0:
                    return self.lr
                q = _fraction(step - begin, self.cooldown_iters)
                return self._between(_COOLDOWN[self.cooldown_style](q))

    def _between(self, weight: float) -> float:
        # Return exactly lr at weight 1: the sum could differ by a rounding error.
        return self.lr if weight == 1.0 else self.min_lr + (self.lr - self.min_lr) * weight


def _fraction(done: int, span: int) -> float:
    """Completed fraction of a phase of `span` updates, at most 1. An empty phase is complete."""
    return min(done / span, 1.0) if span else 1.0


def _half_cosine(p: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * p))


_COOLDOWN: Mapping[CooldownStyle, Callable[[float], float]] = {
    "linear": lambda q: 1.0 - q,
    "cosine": _half_cosine,
    "sqrt": lambda q: 1.0 - math.sqrt(q),
}


class Scheduler(mup_schedule.Scheduler):
    """`mup.schedule.Scheduler` with a LearningRateSchedule, and options for a resume.

    DeepSpeed uses it as `lr_scheduler` and calls `step()` after each applied update.

    use_checkpoint_lr_scheduler: on a resume, use the schedule of the checkpoint.
    override_lr_scheduler: on a resume, use the schedule of the configuration.
    Without either option, loading a state with another schedule raises an error. Both together raise ConfigError.
    """

    schedule: LearningRateSchedule

    def __init__(
        self,
        optimizer: mup_schedule.HasParamGroups,
        schedule: LearningRateSchedule,
        *,
        lr_mults: Mapping[str, float] | None = None,
        use_checkpoint_lr_scheduler: bool = False,
        override_lr_scheduler: bool = False,
    ) -> None:
        if use_checkpoint_lr_scheduler and override_lr_scheduler:
            raise ConfigError("override_lr_scheduler and use_checkpoint_lr_scheduler cannot be used together")
        self._use_checkpoint = use_checkpoint_lr_scheduler
        self._override = override_lr_scheduler
        super().__init__(optimizer, schedule, lr_mults=lr_mults)

    def state_dict(self) -> dict[str, Any]:
        """Return number of updates, multipliers and schedule."""
        return {**super().state_dict(), "schedule": asdict(self.schedule)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises CheckpointError and changes nothing if the multipliers differ, or if the schedules differ and neither
        option selects one.
        """
        try:
            num_steps, saved, mults = state["num_steps"], dict(state["schedule"]), dict(state["lr_mults"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the learning-rate state of the checkpoint has another format: {error}") from None
        _refuse_difference(
            "other learning-rate multipliers of the parameter groups",
            mults,
            self.lr_mults,
            "resume with the base shapes and muP options of the checkpoint",
        )
        self.schedule = self._choose_schedule(saved)
        super().load_state_dict({"num_steps": num_steps, "lr_mults": mults})

    def _choose_schedule(self, saved: dict[str, Any]) -> LearningRateSchedule:
        if self._override:
            return self.schedule
        if not self._use_checkpoint:
            _refuse_difference(
                "another learning-rate schedule",
                saved,
                asdict(self.schedule),
                "set override_lr_scheduler to take the new one, or use_checkpoint_lr_scheduler to keep the saved one",
            )
            return self.schedule
        known = {field.name for field in fields(LearningRateSchedule)}
        if unknown := saved.keys() - known:
            raise CheckpointError(f"the learning-rate schedule of the checkpoint has unknown keys: {sorted(unknown)}")
        return LearningRateSchedule(**saved)


def _refuse_difference(what: str, saved: Mapping[str, Any], current: Mapping[str, Any], way_out: str) -> None:
    """Raise CheckpointError with a table of the entries that differ, if any do."""
    if rows := mup_schedule.differences(saved, current):
        raise CheckpointError(f"the checkpoint has {what}; {way_out}:\n" + "\n".join(rows))
