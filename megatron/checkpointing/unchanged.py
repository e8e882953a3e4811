"""A resume must not change the parametrization: the saved muP section is compared with the current one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.errors import CheckpointError

_MAX_ROWS = 40
_MISSING = "(absent)"


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise CheckpointError with a table (name, saved, now) where two muP sections differ in any value.

    Both are nested mappings of plain values, such as base dimensions, temperatures, multipliers and the
    lr_mult of every parameter group. Numbers are compared exactly.
    """
    before, now = _flatten(saved), _flatten(current)
    names = sorted(before.keys() | now.keys())
    rows = [(n, before.get(n, _MISSING), now.get(n, _MISSING)) for n in names]
    changed = [(n, _show(a), _show(b)) for n, a, b in rows if a != b]
    if changed:
        raise CheckpointError(
            "The checkpoint was trained under another parametrization, and a resume must not change it:\n"
            f"{_table(changed)}\n"
            "Restore these settings, or start a new run from its weights with finetune: true."
        )


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _show(value: Any) -> str:
    return value if value == _MISSING else repr(value)


def _table(rows: list[tuple[str, str, str]]) -> str:
    shown = [("name", "saved", "now"), *rows[:_MAX_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(rows) > _MAX_ROWS:
        lines.append(f"  ... and {len(rows) - _MAX_ROWS} more")
    return "\n".join(lines)
