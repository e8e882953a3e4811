"""Problems of a configuration, each with its key, and the one error that lists them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from megatron.errors import ConfigError
from megatron.neox_arguments.merging import unknown_key

_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "keys and values",
}


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
    """Our sentences for pydantic's errors, one a key."""
    found = {}
    for item in error.errors(include_url=False):
        key = str(item["loc"][0])
        if key not in annotations:
            found[key] = unknown_key(key, annotations)
        elif key not in found:
            value = item["input"]
            found[key] = f"{key}: needs {wanted(annotations[key])}, not {_shown(value)}" + _hint(
                value, annotations[key]
            )
    return list(found.items())


def wanted(annotation: Any) -> str:
    """A type in words, such as 'a whole number or a list'."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        *first, last = map(str, typing.get_args(annotation))
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (typing.Union, types.UnionType):
        return " or ".join(wanted(part) for part in typing.get_args(annotation) if part is not types.NoneType)
    if origin is list:
        plural = {int: "whole numbers"}.get(typing.get_args(annotation)[0], "values")
        return f"a list of {plural}"
    return _NAMES.get(annotation, "another value")


def _shown(value: Any) -> str:
    names = {bool: "the truth value", str: "the text", list: "the list", dict: "the section"}
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{names[type(value)]} {text}" if type(value) in names else text


def _hint(value: Any, annotation: Any) -> str:
    kinds = typing.get_args(annotation) or (annotation,)
    if isinstance(value, str) and {int, float} & set(kinds):
        try:
            float(value)
        except ValueError:
            return ""
        return f"; write {value} without quotes"
    if str in kinds and not isinstance(value, str | list | dict):
        return "; put it in quotes"
    return ""
