"""Notes of the audit on dimensions that do not grow."""

from __future__ import annotations

import pytest

from megatron.architecture import Widths
from megatron.parametrization.audit import notes
from tests.parametrization.helpers import BASE, make_plan


@pytest.mark.parametrize(
    ("base", "wide", "noted"),
    [
        (Widths(32, 4, 2, 128, 2), Widths(128, 16, 2, 512, 2), True),  # 2 heads of 8 in both
        (Widths(32, 4, 2, 128, 2), Widths(128, 16, 8, 512, 2), False),
        (Widths(32, 4, 2, 128, 2), Widths(128, 4, 2, 512, 2), False),  # the head dimension grows
        (Widths(32, 4, 2, 128, 2), Widths(32, 4, 2, 256, 2), False),  # the hidden size does not grow
    ],
)
def test_a_fixed_number_of_key_value_heads_is_noted(base, wide, noted):
    found = notes(make_plan(wide, base).parameters, wide, base)
    assert any("keys and values have 2 heads of 8" in note for note in found) is noted


def test_a_dimension_that_does_not_grow_is_noted_by_name():
    wide = Widths(128, 8, 8, 128, 2)
    [first, second] = notes(make_plan(wide).parameters, wide, BASE)
    assert first.startswith("layers.0.mlp.dense_4h_to_h.weight has the same fan-in") and "layers.1" in second
