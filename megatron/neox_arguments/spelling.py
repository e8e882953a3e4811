"""Convert the accepted spellings of a value to the form that its key declares."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from megatron.neox_arguments.fields import FIELDS, KEYS, section_fields
from megatron.neox_arguments.keys import key_of
from megatron.neox_arguments.limits import Items
from megatron.neox_arguments.messages import kinds

_EXTRA = "deepspeed_extra_args"


def as_declared(given: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `given` in which words and whole numbers have their declared form.

    - A word of a Literal is accepted in any case, as in GPT-NeoX: `RMSNorm` becomes `rmsnorm`.
    - A float with a whole value is accepted for an integer, at the top level and inside sections: `5e8` becomes
      500000000.

    Everything else is unchanged; validation reports it.
    """
    return {
        name: _value(name, as_spelt(value, FIELDS[name].type), FIELDS[name]) if name in KEYS else value
        for name, value in given.items()
    }


def as_spelt(value: Any, annotation: Any) -> Any:
    """The word of a Literal in `annotation` that equals `value` apart from case; any other value unchanged."""
    if isinstance(value, str):
        for option in (annotation, *typing.get_args(annotation)):
            if typing.get_origin(option) is Literal:
                for known in typing.get_args(option):
                    if isinstance(known, str) and known.lower() == value.lower():
                        return known
    return value


def _value(path: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    key, annotation = key_of(field), field.type
    accepted = kinds(annotation)
    if isinstance(value, list) and _holds_integers(annotation, key.limit):
        return [_whole(item) for item in value]
    if isinstance(value, dict) and key.section:
        return _section(path, value, key.section)
    return _whole(value) if int in accepted and float not in accepted else value


def _section(path: str, section: Mapping[Any, Any], declared: type) -> dict[Any, Any]:
    fields = section_fields(path, declared)
    if path == _EXTRA:  # its sections are declared at the top level
        fields = {**FIELDS, **fields}
        path = ""
    return {
        name: _value(f"{path}.{name}".lstrip("."), value, fields[name]) if name in fields else value
        for name, value in section.items()
    }


def _holds_integers(annotation: Any, limit: Any) -> bool:
    """Whether the items of a list must be integers, by its type or by its limit."""
    by_limit = isinstance(limit, Items) and limit.kind is int
    return by_limit or list[int] in (annotation, *typing.get_args(annotation))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
