"""The static audit as data, shared by the command's tables, its JSON file and the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.audit.run import ModelAudit
    from mup.static_audit import AuditRow

MEASURES = ("init_std", "lr", "eps", "weight_decay")


def as_dict(audit: ModelAudit) -> dict[str, Any]:
    """The audit as plain data for JSON: `passed`, `parameters`, `factors`, `notes`."""
    return {
        "passed": audit.passed,
        "parameters": [_row(row) for row in audit.parameters],
        "factors": [_row(row) for row in audit.factors],
        "notes": list(audit.notes),
    }


def _row(row: AuditRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "role": row.role,
        "shape": list(row.shape),
        "base_shape": list(row.base_shape),
        "fan_in_mult": row.fan_in_mult,
        "measured": dict(row.measured),
        "expected": dict(row.expected),
        "departures": list(row.departures),
    }


def one_per_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the rows of one parameter over all blocks (`layers.*.mlp.weight`) if their departures agree."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        name = re.sub(r"\.\d+\.", ".*.", row["name"])
        first.setdefault((name, *row["departures"]), row | {"name": name})
    return list(first.values())


def shape_text(shape: Sequence[int]) -> str:
    """A shape as text, for example `64x64`."""
    return "x".join(map(str, shape))


def verdict(row: dict[str, Any]) -> str:
    """`ok`, or the measures that depart from the rule."""
    return "DEPARTS: " + ", ".join(row["departures"]) if row["departures"] else "ok"


def measure_text(row: dict[str, Any], measure: str) -> str:
    """The measured value, with the rule's value if they differ. `-` if there is none: SGD has no eps."""
    measured, expected = row["measured"].get(measure), row["expected"].get(measure)
    if measured is None or expected is None:
        return "-"
    return f"{measured:.4g}, rule {expected:.4g}" if measure in row["departures"] else f"{measured:.4g}"


def summary(content: dict[str, Any]) -> str:
    """`PASS`, or `FAIL` with the number of rows that depart."""
    if content["passed"]:
        return "PASS"
    departing = sum(bool(row["departures"]) for row in (*content["parameters"], *content["factors"]))
    return f"FAIL, {departing} departures from the rules"
