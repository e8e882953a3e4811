"""Narrow the types of optional values."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def known(value: T | None) -> T:
    """Return `value`, which `NeoXArgs.require` or `complete` guarantees not to be None."""
    assert value is not None
    return value
