"""How one key is declared: type, default, description and status, in one place.

Every key of GPT-NeoX is known, with exactly one status:

- `supported`: something in this code reads it;
- `satisfied`: a hint for an optimisation whose result this code gives anyway; `NeoXArgs.notices()` says so;
- `refused`: only the neutral value is accepted, any other is an error that gives the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

SUPPORTED, SATISFIED, REFUSED = "supported", "satisfied", "refused"


def _field(default: Any, **metadata: Any) -> Any:
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def supported(default: Any, doc: str, *, refuse: Mapping[Any, str] | None = None, compare: bool = True) -> Any:
    """A key that something reads. `refuse` maps single values that are not supported to the reason."""
    field = _field(default, status=SUPPORTED, doc=doc, refuse=dict(refuse or {}))
    field.compare = compare
    return field


def satisfied(default: Any, doc: str, notice: str) -> Any:
    """A hint whose result this code gives anyway; `notice` is the sentence for a user who sets it."""
    return _field(default, status=SATISFIED, doc=doc, notice=notice)


def refused(default: Any, doc: str, reason: str, *, neutral: tuple[Any, ...] = ()) -> Any:
    """A key that accepts only its default and the values in `neutral`; `reason` also says what to use."""
    return _field(default, status=REFUSED, doc=doc, reason=reason, neutral=neutral)
