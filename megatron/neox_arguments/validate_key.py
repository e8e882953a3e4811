"""Validate one value against the declaration of its key, at the top level or inside a section."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from megatron.neox_arguments.keys import REFUSED, Key
from megatron.neox_arguments.limits import fits_in_64_bits
from megatron.neox_arguments.messages import shown


def refusal(path: str, value: Any, key: Key, default: Any) -> str | None:
    """Return the message for a refused key or a refused value, or None if the value is accepted."""
    reason = refusal_reason(value, key, default)
    return f"{path}: {reason}{_got(value)}" if reason else None


def refusal_reason(value: Any, key: Key, default: Any) -> str | None:
    """Return why `value` is refused, or None if it is accepted."""
    if key.status == REFUSED and value != default and value not in key.neutral:
        return key.reason
    return key.refuse.get(value.lower()) if isinstance(value, str) else None


def _got(value: Any) -> str:
    """Describe a refused value, unless it only switches a feature on."""
    return "" if value is True else f" (got {shown(value)})"


def out_of_range(path: str, value: Any, key: Key) -> str | None:
    """Return the message for a `value` of the right type outside its key's limit, or None if it is accepted."""
    if type(value) is int and not fits_in_64_bits(value):
        return f"{path}: expected an integer of at most 64 bits, got {shown(value)}"
    if key.limit is None or value is None or key.limit.accepts(value):
        return None
    if isinstance(value, str) and value.lower() in key.refuse:
        return None  # reported by `refusal`
    return f"{path}: expected {key.limit.expected}, got {shown(value)}"


def has_type(value: Any, annotation: Any) -> bool:
    """Whether `value` has the type without conversion."""
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
