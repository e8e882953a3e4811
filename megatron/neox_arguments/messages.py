"""Messages about problems of a configuration, and the error that lists them."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from megatron.errors import ConfigError
from megatron.neox_arguments.fields import KEYS
from megatron.neox_arguments.limits import listed
from megatron.neox_arguments.merging import unknown_key

_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}
_PLURALS = {int: "integers", float: "numbers", str: "strings"}


class Problems(ConfigError):
    """All problems of a configuration, as (key, message) pairs."""

    def __init__(self, problems: Sequence[tuple[str, str]]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(sentence for _, sentence in self.problems))

    def located(self, origins: Mapping[str, str]) -> ConfigError:
        """Return an error whose lines start with the file and line of each key."""
        return ConfigError(
            "\n".join(f"{origins[key]}: {text}" if key in origins else text for key, text in self.problems)
        )


def type_problems(error: ValidationError, annotations: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a (key, message) pair for each key in pydantic's errors."""
    found = {}
    for item in error.errors(include_url=False):
        key = str(item["loc"][0])
        if key not in annotations:
            found[key] = unknown_key(key, annotations)
        elif key not in found:
            found[key] = type_problem(key, item["input"], annotations[key], KEYS[key].refuse)
    return list(found.items())


def type_problem(key: str, value: Any, annotation: Any, refused: Collection[str] = ()) -> str:
    """Return the message for a `value` of the wrong type, without the `refused` words of a Literal."""
    return f"{key}: expected {wanted(annotation, refused)}, got {shown(value)}" + _hint(value, annotation)


def wanted(annotation: Any, refused: Collection[str] = ()) -> str:
    """Describe a type in words, for example "an integer or a list of integers"."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return listed([word for word in typing.get_args(annotation) if word not in refused])
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return " or ".join(wanted(part, refused) for part in parts)
    if origin is list:
        return f"a list of {_PLURALS.get(typing.get_args(annotation)[0], 'values')}"
    return _NAMES.get(origin or annotation, "another value")


def kinds(annotation: Any) -> set[Any]:
    """Return the plain types of an annotation, without None: `list[int] | None` gives {list}."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    plain = {typing.get_origin(part) or part for part in parts} - {types.NoneType}
    return {str if part is Literal else part for part in plain}


def shown(value: Any) -> str:
    """Describe a value: its type, unless it is a number, and its shortened repr."""
    names = {bool: "the boolean", str: "the string", list: "the list", dict: "the mapping"}
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, or a list inside itself
        text = f"a value of the type {type(value).__name__} that is too large to show"
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{names[type(value)]} {text}" if type(value) in names else text


def _hint(value: Any, annotation: Any) -> str:
    accepted = kinds(annotation)
    if isinstance(value, str) and {int, float} & accepted:
        try:
            float(value)
        except ValueError:
            return ""
        return f"; write {value} without quotes"
    if str in accepted and not accepted & {int, float} and not isinstance(value, str | list | dict):
        return "; put it in quotes"
    return ""
