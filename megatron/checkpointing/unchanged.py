"""Compare the saved muP, data and optimizer sections with the current ones: a resume must not change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences


class Compared(NamedTuple):
    """A section of the checkpoint and the current one: nested mappings of plain values."""

    saved: Mapping[str, Any]
    now: Mapping[str, Any]


def check_unchanged(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    data: Compared | None = None,
    optimizer: Compared | None = None,
) -> None:
    """Raise CheckpointError with one table (name, saved, now) of all values that differ.

    `saved` and `current` are muP sections: base dimensions, temperatures, multipliers, the lr_mult of every parameter
    group. `data` describes corpus, order and tokenizer, `optimizer` its settings. Numbers are compared exactly.
    """
    found = {
        "under another parametrization": differences(saved, current),
        "on other data": differences(*data) if data else [],
        "with other optimizer settings": differences(*optimizer) if optimizer else [],
    }
    changed = [how for how, rows in found.items() if rows]
    if not changed:
        return
    ways_out = ["Restore these settings, or start a new run from its weights with finetune: true."]
    if not found["under another parametrization"]:
        ways_out += [way_out for how, way_out in _OVERRIDES.items() if found[how]]
    table = difference_table([row for rows in found.values() for row in rows], ("name", "saved", "now"))
    raise CheckpointError(
        f"The checkpoint was trained {' and '.join(changed)}, which must not change on resume:\n{table}\n"
        + " ".join(ways_out)
    )


_OVERRIDES = {
    "on other data": "override_data: true continues this run on the new data, from its first sample.",
    "with other optimizer settings": "override_optimizer: true continues this run with the new settings.",
}
