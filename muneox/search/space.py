"""The search space: the keys that vary, their values, and the sampler.

A space file is YAML:

    sampler: random            # grid, random, qmc (scrambled Sobol) or tpe
    seed: 1                    # seed of the sampler; `seeds` are the training seeds
    widths: [64]               # hidden sizes of each trial; default: the configuration's
    seeds: [1234]              # training seeds of each trial; default: the configuration's
    pruner: none               # none, median or hyperband
    parameters:
      lr: {low: 1.0e-4, high: 1.0e-1, log: true}
      mup-output-temp: [0.5, 1.0, 2.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import KEYS
from megatron.neox_arguments.limits import is_number
from megatron.neox_arguments.merging import normalise, unknown_key
from megatron.neox_arguments.messages import kinds
from megatron.neox_arguments.yaml_loader import load_config

SAMPLERS = ("grid", "random", "qmc", "tpe")
PRUNERS = ("none", "median", "hyperband")
_KEYS = ("sampler", "seed", "widths", "seeds", "pruner", "parameters")
_MAX_POINTS = 10_000
_RANGE_KEYS = ("low", "high", "log", "points")
# Keys that the search sets in every trial, so a space cannot vary them.
_OWN = {"seed": "give `seeds` next to `parameters`", "hidden_size": "give `widths` next to `parameters`"}


@dataclass(frozen=True)
class Parameter:
    """One key that varies over the range [low, high] or over `choices`, in their order.

    log: sample the range uniformly in the logarithm. points: number of values that a grid takes from the range, both
    ends included.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    points: int | None = None
    choices: tuple[Any, ...] = ()

    def at(self, u: float) -> Any:
        """Return the quantile u, in [0, 1), of the uniform (or log-uniform) distribution."""
        if self.choices:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)  # exp(log(x)) can differ from x by rounding

    def position(self, value: Any) -> float:
        """Position of a value: 0 at the lower end or first choice, 1 at the upper end or last choice."""
        if self.choices:
            return self.choices.index(value) / max(len(self.choices) - 1, 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    @property
    def ordered(self) -> bool:
        """Whether the values have an order. The space has edges only along ordered parameters."""
        return not self.choices or all(is_number(choice) for choice in self.choices)

    def grid_values(self) -> tuple[Any, ...]:
        """Values of the parameter in a grid. Raises ConfigError for a range without `points`."""
        if self.choices:
            return self.choices
        if self.points is None:
            raise ConfigError(f"parameters: {self.key}: a grid needs a list of values or a range with `points`")
        return tuple(self.at(k / (self.points - 1)) for k in range(self.points))

    def describe(self) -> Any:
        """The parameter as plain data, in the form of a space file."""
        if self.choices:
            return list(self.choices)
        return {"low": self.low, "high": self.high, "log": self.log, "points": self.points}


@dataclass(frozen=True)
class Space:
    """Content of a space file. Empty `widths` or `seeds` stand for the configuration's value."""

    parameters: tuple[Parameter, ...]
    sampler: str = "random"
    seed: int = 1
    widths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    pruner: str = "none"
    dropped: tuple[str, ...] = field(default=(), compare=False)

    def describe(self) -> dict[str, Any]:
        """The space as plain data. Two searches can share a study only if it is equal."""
        return {
            "parameters": {parameter.key: parameter.describe() for parameter in self.parameters},
            "sampler": self.sampler,
            "seed": self.seed,
            "widths": list(self.widths),
            "seeds": list(self.seeds),
            "pruner": self.pruner,
        }


def load_space(path: str | Path, args: NeoXArgs) -> Space:
    """Read a space file for the configuration `args`. Raises ConfigError naming the file and the key."""
    file = load_config(path)
    try:
        return parse_space(file.values, args)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_space(values: Mapping[str, Any], args: NeoXArgs) -> Space:
    """Build a space from the values of a file. Raises ConfigError naming the key.

    The multiplier of relative positions is dropped if the model has no relative positions.
    """
    for key in values:
        if key not in _KEYS:
            raise ConfigError(f"{unknown_key(str(key), _KEYS)}; the keys of a space are {', '.join(_KEYS)}")
    sampler, pruner = values.get("sampler", "random"), values.get("pruner", "none")
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler: {sampler!r} is not one of {', '.join(SAMPLERS)}")
    if pruner not in PRUNERS:
        raise ConfigError(f"pruner: {pruner!r} is not one of {', '.join(PRUNERS)}")
    if not isinstance(values.get("seed", 1), int):
        raise ConfigError(f"seed: expected an integer, got {values['seed']!r}")
    given = values.get("parameters")
    if not isinstance(given, Mapping) or not given:
        raise ConfigError("parameters: expected at least one key with a range or a list of values")
    parameters = [_parameter(key, value, args) for key, value in given.items()]
    names = [parameter.key for parameter in parameters]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"parameters: {name} is given twice")
    kept = [p for p in parameters if p.key != "mup_rp_embedding_mult" or args.pos_emb == "rpe"]
    if not kept:
        raise ConfigError("parameters: mup_rp_embedding_mult has no effect: the model has no relative positions")
    if sampler == "grid":
        for parameter in kept:
            parameter.grid_values()
    return Space(
        tuple(kept),
        sampler,
        values.get("seed", 1),
        _numbers("widths", values.get("widths"), 1),
        _numbers("seeds", values.get("seeds"), 0),
        pruner,
        tuple(name for name in names if name not in [p.key for p in kept]),
    )


def _numbers(key: str, value: Any, least: int) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(type(v) is int and v >= least for v in value):
        raise ConfigError(f"{key}: expected a list of integers >= {least}, got {value!r}")
    if len(set(value)) < len(value):
        raise ConfigError(f"{key}: {value} contains a number twice")
    return tuple(value)


def _parameter(key: Any, value: Any, args: NeoXArgs) -> Parameter:
    top, *rest = str(key).split(".")
    name = normalise(top)
    fields = NeoXArgs.__dataclass_fields__
    if name not in fields:
        raise ConfigError(f"parameters: {unknown_key(str(key), fields)}")
    name = ".".join([name, *rest])
    name = next((other for other, key in KEYS.items() if rest and name == key.same_as), name)
    if name in _OWN:
        raise ConfigError(f"parameters: {name} cannot be varied here; {_OWN[name]}")
    if name in KEYS and KEYS[name].mup_only and not args.use_mup:
        raise ConfigError(f"parameters: {name} has no effect without use-mup: true in the configuration")
    if isinstance(value, list):
        return _choices(name, value)
    if isinstance(value, Mapping):
        numeric = {int, float} & kinds(fields[normalise(top)].type)
        if not numeric and not rest:
            raise ConfigError(f"parameters: {name} has no range because it is not a number; give a list of values")
        return _range(name, value)
    raise ConfigError(f"parameters: {name}: expected a list or {{low: ..., high: ..., log: ...}}, got {value!r}")


def _choices(name: str, values: list[Any]) -> Parameter:
    if not values:
        raise ConfigError(f"parameters: {name}: the list is empty")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"parameters: {name}: {value!r} is given twice")
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"parameters: {name}: expected numbers, strings or booleans, got {value!r}")
    return Parameter(name, choices=tuple(sorted(values) if all(map(is_number, values)) else values))


def _range(name: str, value: Mapping[str, Any]) -> Parameter:
    for key in value:
        if key not in _RANGE_KEYS:
            raise ConfigError(f"parameters: {name}: {unknown_key(key, _RANGE_KEYS)}")
    low: Any = value.get("low")
    high: Any = value.get("high")
    log, points = value.get("log"), value.get("points")
    if not is_number(low) or not is_number(high):
        raise ConfigError(f"parameters: {name}: low and high must be numbers")
    if log is not None and not isinstance(log, bool):
        raise ConfigError(f"parameters: {name}: log: expected true or false, got {log!r}")
    if low >= high:
        raise ConfigError(f"parameters: {name}: the range from {low} to {high} is empty; low must be below high")
    if log and low <= 0:
        raise ConfigError(f"parameters: {name}: low must be above 0 in a logarithmic range, got {low}")
    if points is not None and (type(points) is not int or not 2 <= points <= _MAX_POINTS):
        raise ConfigError(f"parameters: {name}: points: expected an integer from 2 to {_MAX_POINTS}, got {points!r}")
    return Parameter(name, float(low), float(high), bool(log), points)
