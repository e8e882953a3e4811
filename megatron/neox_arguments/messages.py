"""Problems of a configuration, each with its key, and the one error that lists them."""

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
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "keys and values",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


class Problems(ConfigError):
    """Everything that is wrong, as (key, sentence) pairs."""

    def __init__(self, problems: Sequence[tuple[str, str]]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(sentence for _, sentence in self.problems))

    def located(self, origins: Mapping[str, str]) -> ConfigError:
        """The same with the place that each key came from in front."""
        return ConfigError(
            "\n".join(f"{origins[key]}: {text}" if key in origins else text for key, text in self.problems)
        )


def type_problems(error: ValidationError, annotations: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Our sentences for pydantic's errors, one per key."""
    found = {}
    for item in error.errors(include_url=False):
        key = str(item["loc"][0])
        if key not in annotations:
            found[key] = unknown_key(key, annotations)
        elif key not in found:
            found[key] = type_problem(key, item["input"], annotations[key], KEYS[key].refuse)
    return list(found.items())


def type_problem(key: str, value: Any, annotation: Any, refused: Collection[str] = ()) -> str:
    """The sentence for a `value` that is not of its key's type. `refused`: words of a Literal that are no way out."""
    return f"{key}: expected {wanted(annotation, refused)}, got {shown(value)}" + _hint(value, annotation)


def wanted(annotation: Any, refused: Collection[str] = ()) -> str:
    """A type in words, such as "a whole number or a list"."""
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
    """The plain types that an annotation accepts, None aside: `list[int] | None` gives {list}."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    plain = {typing.get_origin(part) or part for part in parts} - {types.NoneType}
    return {str if part is Literal else part for part in plain}


def shown(value: Any) -> str:
    """A value and, unless it is a number, what it is; shortened."""
    names = {bool: "the truth value", str: "the text", list: "the list", dict: "the section"}
    text = repr(value)
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
