"""The mutation table on a small GPT: every mistake is detected, and correct muP passes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

import mup
from mup.coord_check import verdict
from mup.rules import depth_scaling
from tests.mup.small_gpt import BASE_WIDTH, LR, Shape, batch, build, optimizer, records

torch.set_num_threads(1)

CORRECT = {
    "heads_of_one_size": Shape(),
    "growing_heads": Shape(growing_heads=True),
    "tied": Shape(tied=True),
    "gqa": Shape(kv_group=2),
    "gqa_growing_heads": Shape(kv_group=2, growing_heads=True),
    "gqa_fixed_kv_heads": Shape(fixed_kv_heads=2),
    "swiglu": Shape(swiglu=True),
    "tied_gqa_swiglu": Shape(tied=True, kv_group=2, swiglu=True),
}

# mutation: (module and statistic that must fail, sign and minimum size of the slope)
TABLE: dict[str, tuple[str, str, float]] = {
    "sp": ("blocks.1.attn.out", "rms_delta", +0.6),
    "hidden_lr_unscaled": ("blocks.1.attn.out", "rms_delta", +0.6),
    "hidden_init_unscaled": ("blocks.1.mlp.down", "mean_abs", +0.7),
    "no_readout_mult": ("readout", "rms_delta", +0.6),
    "readout_sqrt": ("readout", "rms_delta", +0.2),
    "embedding_lr_scaled": ("embed", "rms_delta", -0.8),
    "tied_sqrt": ("embed", "mean_abs", +0.4),
}


@functools.cache
def sp_records() -> Any:
    return records(Shape(), "sp")


@pytest.mark.parametrize("mutation", TABLE)
def test_each_mutation_is_detected(mutation: str) -> None:
    module, statistic, least = TABLE[mutation]
    shape = Shape(tied=mutation == "tied_sqrt")
    result = verdict(sp_records() if mutation == "sp" else records(shape, mutation))
    assert not result.passed
    failing = [row for row in result.failures if (row.module, row.statistic) == (module, statistic)]
    assert failing, result.table()
    extreme = max((row.slope for row in failing), key=abs)
    assert extreme / least >= 1, result.table(only_failures=True)


def test_correct_mup_passes_and_the_check_has_power() -> None:
    result = verdict(records(Shape()), reference=sp_records())
    assert result.passed and result.powerless is False, result.table(only_failures=True)


def test_readout_sqrt_is_clearer_with_zero_init() -> None:
    """The check starts the readout at zero, because a random init hides part of the change."""
    result = verdict(records(Shape(), "readout_sqrt", zero_init=False))
    slopes = [row.slope for row in result.rows if (row.module, row.statistic, row.t) == ("readout", "rms_delta", 4)]
    zero = verdict(records(Shape(), "readout_sqrt"))
    hidden = [row.slope for row in zero.rows if (row.module, row.statistic, row.t) == ("readout", "rms_delta", 4)]
    assert slopes[0] < hidden[0]


@pytest.mark.slow
@pytest.mark.parametrize("shape", CORRECT)
def test_correct_mup_passes_ten_times_in_a_row(shape: str) -> None:
    for run in range(10):
        result = verdict(records(CORRECT[shape], widths=(64, 128, 256, 512), seeds=range(100 * run, 100 * run + 3)))
        assert result.passed, f"run {run}\n{result.table(only_failures=True)}"


@pytest.mark.slow
def test_values_of_a_fixed_number_of_heads_are_outputs() -> None:
    """Declared hidden, their change grows with the width, faster at larger widths. As readouts it does not grow."""
    hidden = records(Shape(fixed_kv_heads=2, values_as_hidden=True), widths=(64, 128, 256, 512))
    result = verdict(hidden)
    assert {row.module for row in result.failures} >= {"blocks.0.attn.v", "blocks.0.attn.out"}, result.table()

    def size(width: int) -> float:
        last = (r for r in hidden if (r["module"], r["t"], r["width"]) == ("blocks.0.attn.v", 4, width))
        return sum(r["value"] for r in last)

    assert size(512) / size(256) > size(128) / size(64)
    result = verdict(records(Shape(fixed_kv_heads=2), widths=(64, 128, 256, 512)))
    assert result.passed, result.table(only_failures=True)


# ---- depth -----------------------------------------------------------------------------------------------------

DEPTHS = (2, 4, 8, 16)


def depth_records(alpha: float, seeds: Any = (0, 1, 2)) -> list[dict[str, Any]]:
    """Records of the residual stream over 2..16 layers at one width; the base depth is 2."""

    def model(layers: int) -> Any:
        branch = depth_scaling(layers / DEPTHS[0], alpha).forward
        return build(Shape(width=BASE_WIDTH, layers=layers), branch=branch)

    def make_optimizer(net: Any) -> torch.optim.Optimizer:
        factor = depth_scaling(len(net.blocks) / DEPTHS[0], alpha)
        inside = {id(p) for p in net.blocks.parameters()}
        groups = [
            {
                "params": [p for p in group["params"] if (id(p) in inside) == block],
                "name": f"{group['name']}/{block}",
            }
            | {
                "lr": group["lr"] * (factor.lr if block else 1),
                "eps": group["eps"] * (factor.eps if block else 1),
            }
            for group in optimizer(net, lr=LR).param_groups
            for block in (False, True)
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)

    models = {layers: functools.partial(model, layers) for layers in DEPTHS}
    return mup.coord_records(
        models,
        batch(),
        make_optimizer,
        seeds=seeds,
        axis="layers",
        keep=lambda name: name in ("norm", "final", "readout"),
    )


@pytest.mark.slow
def test_depth() -> None:
    kept = verdict(depth_records(1.0), axis="layers")
    assert kept.passed, kept.table()
    drift = verdict(depth_records(0.0), axis="layers")
    assert not drift.passed, drift.table()
    slope = {(row.module, row.statistic): row.slope for row in drift.rows if row.t in (0, 4)}
    assert slope["final", "rms_delta"] > 0.8  # the change of the residual stream grows about as the number of layers
    assert abs(max((row.slope for row in kept.rows), key=abs)) < 0.15


def test_shapes_of_the_helper() -> None:
    assert Shape(width=256).heads == 16 and Shape(width=256, growing_heads=True).head_dim == 64
    assert Shape(width=256, kv_group=2).kv_heads == 8 and replace(Shape(), fixed_kv_heads=2).kv_heads == 2
