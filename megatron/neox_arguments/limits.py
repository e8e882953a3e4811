"""Limits of a key's value, each with a description for error messages and the key reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Limit(Protocol):
    """A condition on a value of the declared type."""

    @property
    def expected(self) -> str:
        """Description of the accepted values, written after "expected"."""

    def accepts(self, value: Any) -> bool:
        """Whether `value` meets the condition. Returns False for a value of another type."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`. Each end is included or excluded; None means no limit on that side."""

    low: float | None = None
    high: float | None = None
    low_included: bool = True
    high_included: bool = True

    @property
    def expected(self) -> str:
        """For example "a number of at least 1" or "a number from 0 to below 1"."""
        if self.high is None:
            return f"a number {'of at least' if self.low_included else 'above'} {self.low:g}"
        below = "" if self.high_included else "below "
        return f"a number from {self.low:g} to {below}{self.high:g}"

    def accepts(self, value: Any) -> bool:
        """Whether `value` is a number in the range."""
        if not is_number(value):
            return False
        above = self.low is None or value > self.low or (self.low_included and value == self.low)
        below = self.high is None or value < self.high or (self.high_included and value == self.high)
        return above and below


@dataclass(frozen=True)
class OneOf:
    """A fixed set of numbers or words."""

    values: tuple[Any, ...]

    @property
    def expected(self) -> str:
        """For example "0, 1, 2 or 3"."""
        return listed(self.values)

    def accepts(self, value: Any) -> bool:
        """Whether `value` is one of the values. A boolean does not equal 0 or 1."""
        return isinstance(value, str | int | float) and not isinstance(value, bool) and value in self.values


@dataclass(frozen=True)
class Pattern:
    """Strings that a regular expression matches in full. `expected` describes them in words."""

    regex: str
    expected: str

    def accepts(self, value: Any) -> bool:
        """Whether `value` is a matching string."""
        return isinstance(value, str) and re.fullmatch(self.regex, value) is not None


@dataclass(frozen=True)
class Items:
    """Lists of items of one type within one limit. `count`: the number of items, or None for any."""

    kind: type
    limit: Range | Pattern | None = None
    count: int | None = None

    @property
    def expected(self) -> str:
        """For example "a list of integers of at least 0"."""
        if isinstance(self.limit, Pattern):
            return f"a list of {self.limit.expected}"
        what = {int: "integers", float: "numbers", str: "strings"}[self.kind]
        bounds = f" {self.limit.expected.removeprefix('a number ')}" if self.limit else ""
        return f"a list of {f'{self.count} ' if self.count else ''}{what}{bounds}"

    def accepts(self, value: Any) -> bool:
        """Whether `value` is a list that meets the conditions."""
        if not isinstance(value, list) or (self.count is not None and len(value) != self.count):
            return False
        if self.kind is str:
            return all(isinstance(item, str) and (self.limit is None or self.limit.accepts(item)) for item in value)
        numbers = all(is_number(item) and (self.kind is float or isinstance(item, int)) for item in value)
        return numbers and all(self.limit is None or self.limit.accepts(item) for item in value)


def at_least(low: float) -> Range:
    """Numbers of at least `low`."""
    return Range(low)


def above(low: float) -> Range:
    """Numbers above `low`."""
    return Range(low, low_included=False)


SHARE = Range(0, 1)
PROBABILITY_BELOW_ONE = Range(0, 1, high_included=False)


def one_of(*values: Any) -> OneOf:
    """Exactly the given values."""
    return OneOf(values)


def fits_in_64_bits(value: int) -> bool:
    """Whether an integer can be stored as int64. Nothing here counts further."""
    return -(1 << 63) <= value < 1 << 63


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number and not a boolean."""
    if isinstance(value, int):
        return not isinstance(value, bool) and fits_in_64_bits(value)
    return isinstance(value, float) and abs(value) < float("inf")


def listed(values: Sequence[Any]) -> str:
    """Join `values` in words: "1, 2 or 3"."""
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last
