"""Validate the keys inside sections against their declarations, which pydantic does not check."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from megatron.neox_arguments.fields import FIELDS, KEYS, section_fields
from megatron.neox_arguments.keys import REFUSED, key_of
from megatron.neox_arguments.messages import shown, type_problem
from megatron.neox_arguments.spelling import as_spelt
from megatron.neox_arguments.validate_key import has_type, out_of_range, refusal
from megatron.neox_arguments.validate_run import Problem

_EXTRA = "deepspeed_extra_args"


def problems(v: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem of a section in the resolved values `v` as (key, message)."""
    for name, key in KEYS.items():
        if key.section and v[name] is not None and name != _EXTRA:
            moved = name not in given  # `complete` moved it from deepspeed_extra_args
            path = f"{_EXTRA}.{name}" if moved else name
            for problem in _section(path, name, v[name], key.section):
                yield _EXTRA if moved else name, problem
    for problem in _extra(v[_EXTRA] or {}):
        yield _EXTRA, problem
    for name in ("fp16", "bf16", "torch_autocast"):
        if v[name] and "enabled" not in v[name]:
            yield name, f"{name}: missing key enabled; add enabled: true or enabled: false"


def _section(path: str, name: str, section: Any, declared: type) -> Iterator[str]:
    """Yield the problems of a section. `path`: its place in the file. `name`: where its keys are declared."""
    if not isinstance(section, dict):
        yield f"{path}: expected a mapping, got {shown(section)}"
        return
    fields = section_fields(name, declared)
    for inner, value in section.items():
        where = f"{path}.{inner}"
        if inner not in fields:
            yield f"{where}: unknown key; {_nearest(inner, fields)}"
            continue
        field, key = fields[inner], key_of(fields[inner])
        value = as_spelt(value, field.type) if key.same_as else value
        problem = refusal(where, value, key, field.default)
        if problem is None and not has_type(value, field.type):
            problem = type_problem(where, value, field.type, key.refuse)
        problem = problem or out_of_range(where, value, key)
        if problem:
            yield problem
        elif key.section and value is not None:
            yield from _section(where, f"{name}.{inner}", value, key.section)


def _extra(section: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of deepspeed_extra_args, which cannot override top-level keys."""
    declared = KEYS[_EXTRA].section
    assert declared is not None
    known = section_fields(_EXTRA, declared)
    for name, value in section.items():
        key, where = KEYS.get(name), f"{_EXTRA}.{name}"
        if key is None and name in known:
            yield from _section(_EXTRA, _EXTRA, {name: value}, declared)
        elif key is None:
            sections = {other for other, fact in KEYS.items() if fact.section and fact.to_deepspeed}
            yield f"{where}: unknown key; {_nearest(name, [*known, *sorted(sections)])}"
        elif key.status == REFUSED:
            problem = refusal(where, value, key, FIELDS[name].default)
            if problem:
                yield problem
        elif not (key.section and key.to_deepspeed):
            yield f"{where}: is a top-level key; write {name}: {_inline(value)} at the top level"


def _inline(value: Any) -> str:
    return "{...}" if isinstance(value, dict) else str(value)


def _nearest(name: Any, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
