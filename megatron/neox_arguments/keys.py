"""Declare a configuration key: the facts that the code, the error messages and the key reference use.

Every key of GPT-NeoX is declared and has exactly one status:

- `supported`: the code reads the key.
- `satisfied`: the key requests an optimisation whose result the code always gives; `NeoXArgs.notices()` reports it.
- `refused`: the key accepts only its default and neutral values. Any other value is an error that gives the reason.

Keys inside a section, such as `optimizer.params`, are declared in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron.neox_arguments.features import UNSUPPORTED
from megatron.neox_arguments.limits import Limit
from megatron.neox_arguments.transfer import FREE, MUST_MATCH, Recipe, Transfer

SUPPORTED, SATISFIED, REFUSED = "supported", "satisfied", "refused"


@dataclasses.dataclass(frozen=True)
class Key:
    """The facts about one key. Its dataclass field has the name, type and default.

    doc: description in the key reference.
    reason: refused keys: why, and what to use instead.
    feature: refused keys: the unsupported feature of `features.UNSUPPORTED` to which the key belongs.
    neutral: refused keys: accepted values in addition to the default.
    notice: satisfied keys: the message shown to a user who sets the key.
    refuse: single values that are not supported, each with its reason.
    limit: the accepted values.
    aliases: former names with the same meaning.
    same_as: another key, or a dotted path into a section, that sets the same value. An override of one replaces the
        other.
    fallback: the value if neither this key nor `same_as` is set and the default is None.
    section: the dataclass that declares the inner keys, if the value is a section.
    to_deepspeed: DeepSpeed's configuration has this key with the same name and value.
    mup_only: the key has no effect without use_mup.
    transfer, recipe: see `transfer`.
    """

    doc: str
    status: str = SUPPORTED
    reason: str = ""
    feature: str = ""
    neutral: tuple[Any, ...] = ()
    notice: str = ""
    refuse: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limit: Limit | None = None
    aliases: tuple[str, ...] = ()
    same_as: str | None = None
    fallback: Any = None
    section: type | None = None
    to_deepspeed: bool = False
    mup_only: bool = False
    transfer: Transfer = MUST_MATCH
    recipe: tuple[Recipe, ...] = ()


def _field(default: Any, key: Key, compare: bool = True) -> Any:
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata={"key": key}, compare=compare)
    return dataclasses.field(default=default, metadata={"key": key}, compare=compare)


def supported(default: Any, doc: str, *, compare: bool = True, **facts: Any) -> Any:
    """Declare a key that the code reads. `facts` are attributes of Key; `compare` is passed to dataclasses.field."""
    return _field(default, Key(doc, **facts), compare)


def satisfied(default: Any, doc: str, notice: str) -> Any:
    """Declare a key whose requested result the code always gives. `notice` is the message for a user who sets it."""
    return _field(default, Key(doc, SATISFIED, notice=notice, transfer=FREE))


def refused(default: Any, doc: str, reason: str = "", *, neutral: tuple[Any, ...] = (), feature: str = "") -> Any:
    """Declare a key that accepts only its default and `neutral` values.

    `reason` also names the alternative. A key of an unsupported `feature` has the sentence of the feature instead.
    """
    reason = reason or UNSUPPORTED[feature].sentence
    return _field(default, Key(doc, REFUSED, reason, feature, neutral, transfer=FREE))


def key_of(field: dataclasses.Field[Any]) -> Key:
    """Return the declaration stored in a dataclass field."""
    key = field.metadata["key"]
    assert isinstance(key, Key)
    return key
