"""How one key is declared: everything that the code, the error messages and the reference say about it.

Every key of GPT-NeoX is known, with exactly one status:

- `supported`: something in this code reads it;
- `satisfied`: a hint for an optimisation whose result this code gives anyway; `NeoXArgs.notices()` says so;
- `refused`: only the neutral value is accepted, any other is an error that gives the reason.

The keys inside a section, such as `optimizer.params`, are declared in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron.neox_arguments.limits import Limit
from megatron.neox_arguments.transfer import FREE, MUST_MATCH, Recipe, Transfer

SUPPORTED, SATISFIED, REFUSED = "supported", "satisfied", "refused"


@dataclasses.dataclass(frozen=True)
class Key:
    """The facts about one key beside its name, type and default, which its dataclass field has.

    doc: what it does, in the words of the reference.
    reason, neutral: of a refused key, why and what to use instead, and further values that are accepted.
    notice: of a satisfied key, the sentence for a user who sets it.
    refuse: single values that are not supported, with the reason.
    limit: the accepted values.
    aliases: former names with exactly the same meaning.
    same_as: another key, or a dotted path into a section, that says the same: an override of one replaces the other.
    fallback: value where neither this key nor `same_as` is given and the default is None.
    section: the dataclass that declares the keys inside, for a key whose value is a section.
    to_deepspeed: DeepSpeed's configuration has it under the same name, with the same value.
    mup_only: does nothing without use_mup.
    transfer, recipe: see `transfer`.
    """

    doc: str
    status: str = SUPPORTED
    reason: str = ""
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
    """A key that something reads. `facts` are attributes of Key; `compare` is dataclasses.field's."""
    return _field(default, Key(doc, **facts), compare)


def satisfied(default: Any, doc: str, notice: str) -> Any:
    """A hint whose result this code gives anyway; `notice` is the sentence for a user who sets it."""
    return _field(default, Key(doc, SATISFIED, notice=notice, transfer=FREE))


def refused(default: Any, doc: str, reason: str, *, neutral: tuple[Any, ...] = ()) -> Any:
    """A key that accepts only its default and the values in `neutral`; `reason` also says what to use."""
    return _field(default, Key(doc, REFUSED, reason, neutral, transfer=FREE))


def key_of(field: dataclasses.Field[Any]) -> Key:
    """The declaration in a dataclass field."""
    key = field.metadata["key"]
    assert isinstance(key, Key)
    return key
