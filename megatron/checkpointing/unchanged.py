"""Compare the saved muP section with the current one: a resume must not change the parametrization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise CheckpointError with a table (name, saved, now) if two muP sections differ in any value.

    Both are nested mappings of plain values: base dimensions, temperatures, multipliers, the lr_mult of every
    parameter group. Numbers are compared exactly.
    """
    changed = differences(saved, current)
    if changed:
        raise CheckpointError(
            "The checkpoint was trained under another parametrization, which must not change on resume:\n"
            f"{difference_table(changed, ('name', 'saved', 'now'))}\n"
            "Restore these settings, or start a new run from its weights with finetune: true."
        )
