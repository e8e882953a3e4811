"""A resume must not change the parametrization: the saved muP section is compared with the current one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise CheckpointError with a table (name, saved, now) where two muP sections differ in any value.

    Both are nested mappings of plain values, such as base dimensions, temperatures, multipliers and the
    lr_mult of every parameter group. Numbers are compared exactly.
    """
    changed = differences(saved, current)
    if changed:
        raise CheckpointError(
            "The checkpoint was trained under another parametrization, and a resume must not change it:\n"
            f"{difference_table(changed, ('name', 'saved', 'now'))}\n"
            "Restore these settings, or start a new run from its weights with finetune: true."
        )
