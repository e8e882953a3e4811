"""Values that are known to be there."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def known(value: T | None) -> T:
    """`value`, which `NeoXArgs.require` or the completion of the configuration has made sure of."""
    assert value is not None
    return value
