"""The table of rules: properties for every role, optimizer and option, and its cells against the papers."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mup.rules import (
    FAMILY_OF_OPTIMIZER,
    TABLE,
    Family,
    Options,
    Power,
    Role,
    Scaling,
    attention_scale,
    depth_scaling,
    parameter_scaling,
    readout_mult,
)

MULT = st.floats(1 / 16, 64)
ROLES = st.sampled_from(list(Role))
OPTIONS = st.builds(
    Options,
    optimizer=st.sampled_from(list(FAMILY_OF_OPTIMIZER)),
    weight_decay_mode=st.sampled_from(["scaled", "constant", "independent"]),
    eps_scaling=st.booleans(),
    depth_alpha=st.sampled_from([0.0, 0.5, 1.0]),
)


def scaling(role: Role, options: Options, r: float, s: float, m: float, depth: float, block: bool) -> Scaling:
    return parameter_scaling(
        role, fan_in_mult=r, fan_out_mult=s, width_mult=m, depth_mult=depth, in_block=block, options=options
    )


FOUR = st.tuples(MULT, MULT, MULT, MULT)


@given(ROLES, OPTIONS, st.booleans())
def test_the_base_size_equals_sp(role: Role, options: Options, block: bool) -> None:
    sp = Options(mup=False, optimizer=options.optimizer)
    assert scaling(role, options, 1, 1, 1, 1, block) == scaling(role, sp, 4, 2, 3, 8, block)
    assert set(astuple(scaling(role, options, 1, 1, 1, 1, block))) <= {0.0, 1.0}


@given(ROLES, OPTIONS, st.booleans(), FOUR, FOUR)
def test_multipliers_compose(
    role: Role,
    options: Options,
    block: bool,
    first: tuple[float, float, float, float],
    second: tuple[float, float, float, float],
) -> None:
    """Scaling 64 -> 128 -> 256 equals scaling 64 -> 256."""
    r, s, m, depth = (a * b for a, b in zip(first, second, strict=True))
    both = scaling(role, options, r, s, m, depth, block)
    in_two = zip(
        astuple(scaling(role, options, *first, block)),
        astuple(scaling(role, options, *second, block)),
        strict=True,
    )
    assert astuple(both) == pytest.approx([a * b for a, b in in_two])


@given(ROLES, OPTIONS, MULT, MULT, MULT, st.floats(1e-9, 1e-6))
def test_rules_are_continuous(role: Role, options: Options, r: float, s: float, m: float, step: float) -> None:
    near = scaling(role, options, r * (1 + step), s * (1 + step), m * (1 + step), 1, False)
    assert astuple(near) == pytest.approx(astuple(scaling(role, options, r, s, m, 1, False)), rel=1e-5)


@given(ROLES, OPTIONS, st.tuples(MULT, MULT, MULT))
def test_scaled_decay_times_lr_does_not_depend_on_the_width(
    role: Role, options: Options, mults: tuple[float, float, float]
) -> None:
    got = scaling(role, options, *mults, 1.0, False)
    if role is Role.VECTOR:
        assert got.weight_decay == 0
    elif options.weight_decay_mode == "scaled":
        assert got.lr * got.weight_decay == pytest.approx(1)
    else:
        assert got.weight_decay == 1


# (init_std, lr, eps, weight_decay, forward) at r = 4, s = 9, m = 16, from Tensor Programs V, Table 8, and the
# spectral condition
CELLS: dict[tuple[str, Role], tuple[float, ...]] = {
    ("adamw", Role.INPUT): (1, 1, 1 / 16, 1, 1),
    ("adamw", Role.HIDDEN): (1 / 2, 1 / 4, 1 / 16, 4, 1),
    ("adamw", Role.VALUE): (3 / 4, 1 / 4, 1 / 16, 4, 1),
    ("adamw", Role.OUTPUT): (1, 1, 1 / 16, 1, 1 / 16),
    ("adamw", Role.VECTOR): (1, 1, 1 / 4, 0, 1),
    ("adamw", Role.POSITION_BIAS): (1, 1, 1, 1, 1),
    ("sgd", Role.INPUT): (1, 9, 1, 1 / 9, 1),
    ("sgd", Role.HIDDEN): (1 / 2, 9 / 4, 1, 4 / 9, 1),
    ("sgd", Role.VALUE): (3 / 4, 9 / 4, 1, 4 / 9, 1),
    ("sgd", Role.OUTPUT): (1, 4, 1, 1 / 4, 1 / 16),
    ("sgd", Role.VECTOR): (1, 4, 1, 0, 1),
    ("sgd", Role.POSITION_BIAS): (1, 1, 1, 1, 1),
    ("lion", Role.INPUT): (1, 1, 1, 1, 1),
    ("lion", Role.HIDDEN): (1 / 2, 1 / 4, 1, 4, 1),
    ("lion", Role.VALUE): (3 / 4, 1 / 4, 1, 4, 1),
    ("lion", Role.OUTPUT): (1, 1, 1, 1, 1 / 16),
    ("lion", Role.VECTOR): (1, 1, 1, 0, 1),
    ("lion", Role.POSITION_BIAS): (1, 1, 1, 1, 1),
    ("muon", Role.INPUT): (1, 1, 1 / 16, 1, 1),
    ("muon", Role.HIDDEN): (1 / 2, 3 / 2, 1, 2 / 3, 1),
    ("muon", Role.VALUE): (3 / 4, 3 / 2, 1, 2 / 3, 1),
    ("muon", Role.OUTPUT): (1, 1, 1 / 16, 1, 1 / 16),
    ("muon", Role.VECTOR): (1, 1, 1 / 4, 0, 1),
    ("muon", Role.POSITION_BIAS): (1, 1, 1, 1, 1),
}


def test_the_cells_cover_the_table() -> None:
    reached = {(FAMILY_OF_OPTIMIZER[optimizer], role) for optimizer, role in CELLS}
    assert reached == set(itertools.product(TABLE, Role)) == set(itertools.product(Family, Role))


@pytest.mark.parametrize(("optimizer", "role"), CELLS)
def test_cell(optimizer: str, role: Role) -> None:
    got = scaling(role, Options(optimizer=optimizer), 4, 9, 16, 1, False)
    assert astuple(got) == pytest.approx(CELLS[optimizer, role])
    if optimizer == "adamw":
        assert got == scaling(role, Options(optimizer="adam"), 4, 9, 16, 1, False)


def test_options() -> None:
    hidden: Any = {"r": 4, "s": 4, "m": 4, "depth": 1, "block": False}
    assert scaling(Role.HIDDEN, Options(eps_scaling=False), **hidden).eps == 1
    assert scaling(Role.OUTPUT, Options(readout_zero_init=True), **hidden).init_std == 0
    assert scaling(Role.OUTPUT, Options(readout_zero_init=True, mup=False), **hidden).init_std == 0
    for wrong in ({"optimizer": "adagrad"}, {"weight_decay_mode": "none"}, {"depth_alpha": 0.7}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("optimizer", "alpha", "lr"),
    [
        ("adamw", 0.5, 1 / 2),
        ("adamw", 1.0, 1),
        ("sgd", 0.5, 1),
        ("sgd", 1.0, 4),
        ("muon", 0.5, 1 / 2),
        ("lion", 0.0, 1),
    ],
)
def test_depth(optimizer: str, alpha: float, lr: float) -> None:
    """With 4 times the layers: Tensor Programs VI, Table 1 (SGD and Adam at 1/2); CompleteP, Table 1."""
    options = Options(optimizer=optimizer, depth_alpha=alpha)
    assert scaling(Role.VECTOR, options, 1, 1, 1, 4, True).lr == lr
    assert scaling(Role.VECTOR, options, 1, 1, 1, 4, False).lr == 1
    depth = depth_scaling(4, alpha, options.family)
    assert depth.forward == depth.eps == 4**-alpha and depth.lr == lr


@given(st.integers(1, 512), st.integers(1, 512), st.floats(0.1, 10))
def test_attention_and_readout(d: int, base: int, temperature: float) -> None:
    assert attention_scale(base, base) == 1 / math.sqrt(base)  # equal to torch's scale bit for bit
    assert attention_scale(d, base, temperature) == pytest.approx(math.sqrt(base) / (d * temperature))
    assert readout_mult(1.0) == 1.0 and readout_mult(d, temperature) == pytest.approx(1 / (d * temperature))


@given(MULT, MULT, MULT)
def test_powers(r: float, s: float, m: float) -> None:
    power = Power(0.5, -1, 2)
    assert power(r, s, m) == pytest.approx(math.sqrt(r) / s * m * m)
    assert power(r, s, m) ** 3 * power.raised(-3)(r, s, m) == pytest.approx(1)
