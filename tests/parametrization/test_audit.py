"""Audit of a planned model: its rows, and its notes on dimensions that do not grow."""

from __future__ import annotations

import copy

import pytest
import torch

from megatron.architecture import Widths
from megatron.parametrization.audit import audit_parameters, notes
from megatron.parametrization.init import draw
from mup.static_audit import factor_row, measured_attention_scale
from tests.parametrization.helpers import BASE, make_plan, scaled

ADAM = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}


def right(plan):
    """Weights as planned, and one group per parameter with the values of the rules."""
    weights = {name: draw(own, 1) for name, own in plan.parameters.items()}
    groups = [
        {"parameter_names": [name]} | {key: base * getattr(own.scaling, key) for key, base in ADAM.items()}
        for name, own in plan.parameters.items()
    ]
    return weights, groups


def departures(plan, weights, groups):
    rows = audit_parameters(weights, plan.parameters, groups, **ADAM)
    return {row.name: row.departures for row in rows if not row.passed}


@pytest.mark.parametrize("query_zero_init", [False, True])
def test_planned_values_pass(query_zero_init):
    plan = make_plan(scaled(4), query_zero_init=query_zero_init)
    assert departures(plan, *right(plan)) == {}


NAME = "layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize("quantity", ["lr", "eps", "weight_decay", "init_std", "groups"])
def test_each_departure_is_named(quantity):
    plan = make_plan(scaled(4))
    weights, groups = right(plan)
    group = next(group for group in groups if group["parameter_names"] == [NAME])
    if quantity == "init_std":
        weights[NAME] *= 2
    elif quantity == "groups":
        groups.append(copy.copy(group))
    else:
        group[quantity] *= 2
    assert departures(plan, weights, groups) == {NAME: (quantity,)}


def test_a_parameter_in_no_group_departs_and_padding_does_not():
    plan = make_plan(scaled(4))
    weights, groups = right(plan)
    name = "embedding.word_embeddings.weight"
    weights[name] = torch.cat((weights[name], torch.zeros(3, weights[name].shape[1])))
    assert departures(plan, weights, [g for g in groups if g["parameter_names"] != [NAME]]) == {NAME: ("groups",)}


def test_sgd_has_no_eps_and_independent_decay_counts():
    plan = make_plan(scaled(4))
    weights, groups = right(plan)
    for group in groups:
        del group["eps"]
        group |= {"weight_decay": 0.0, "independent_weight_decay": group["weight_decay"]}
    assert departures(plan, weights, groups) == {}


def test_a_wrong_factor_departs():
    assert factor_row("logits", 0.25, 0.25 * (1 + 1e-6)).passed
    assert factor_row("logits", 0.25, 0.5).departures == ("forward",)


def test_the_attention_scale_is_measured_on_any_core():
    attend = torch.nn.functional.scaled_dot_product_attention
    for scale in (0.01, 0.7):
        measured = measured_attention_scale(lambda q, k, v, s=scale: attend(q, k, v, is_causal=True, scale=s), 8)
        assert measured == pytest.approx(scale, rel=1e-6)


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
