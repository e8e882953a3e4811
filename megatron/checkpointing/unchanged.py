"""Compare the saved muP and data sections with the current ones: a resume must not change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences


class Compared(NamedTuple):
    """A section of the checkpoint and the current one: nested mappings of plain values."""

    saved: Mapping[str, Any]
    now: Mapping[str, Any]


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any], data: Compared | None = None) -> None:
    """Raise CheckpointError with one table (name, saved, now) of all values that differ.

    `saved` and `current` are muP sections: base dimensions, temperatures, multipliers, the lr_mult of every parameter
    group. `data` describes corpus, order and tokenizer. Numbers are compared exactly.
    """
    parametrization, of_data = differences(saved, current), differences(*data) if data else []
    if not parametrization and not of_data:
        return
    what = {"under another parametrization": parametrization, "on other data": of_data}
    way_out = "Restore these settings, or start a new run from its weights with finetune: true."
    if of_data and not parametrization:
        way_out += " override_data: true continues this run on the new data, from its first sample."
    raise CheckpointError(
        f"The checkpoint was trained {' and '.join(how for how, found in what.items() if found)}, "
        "which must not change on resume:\n"
        f"{difference_table([*parametrization, *of_data], ('name', 'saved', 'now'))}\n{way_out}"
    )
