"""The static audit finds every departure from the rules, and none in correct models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

import mup
from mup import MuAdamW, MuReadout, MuSGD, MuSharedReadout, Options, audit, param_groups
from tests.mup.small_gpt import BASE_WIDTH, EPS, LR, Shape, batch, build, optimizer

WIDE = Shape(width=256, growing_heads=True)


def audited(shape: Shape = WIDE, mutation: str = "", zero_init: bool = False) -> mup.Audit:
    torch.manual_seed(0)
    model, base = build(shape, mutation, zero_init), build(replace(shape, width=BASE_WIDTH), "", zero_init)
    return audit(
        model,
        optimizer(model, mutation),
        base=base,
        options=Options(),
        forward=lambda: model(batch()[0]),
        base_head_dim=cast(Any, base.blocks[0]).attn.head_dim,
    )


@pytest.mark.parametrize(
    "shape", [WIDE, Shape(width=256, tied=True, swiglu=True, kv_group=2), Shape(width=256, fixed_kv_heads=2)]
)
@pytest.mark.parametrize("zero_init", [False, True])
def test_correct_models_pass(shape: Shape, zero_init: bool) -> None:
    report = audited(shape, zero_init=zero_init)
    assert report.passed, report.table(only_faults=True)
    assert report.table().endswith(f"PASS: {len(report.rows)} rows")
    names = [row.name for row in report.rows]
    assert "readout()" in names and "attention 1" in names and "blocks.0.mlp.up.weight" in names


FAULTS = {  # mutation: (row, quantity)
    "hidden_lr_unscaled": ("blocks.0.attn.q.weight", "lr"),
    "hidden_init_unscaled": ("blocks.1.mlp.down.weight", "init_std"),
    "no_readout_mult": ("readout()", "forward"),
    "readout_sqrt": ("readout()", "forward"),
    "embedding_lr_scaled": ("embed.weight", "lr"),
    "tied_sqrt": ("embed.weight", "init_std"),
    "attention_sqrt": ("attention 0", "attention_scale"),
}


@pytest.mark.parametrize("mutation", FAULTS)
def test_each_mutation_is_found_in_its_row(mutation: str) -> None:
    shape = replace(WIDE, tied=mutation == "tied_sqrt")
    if "readout" in mutation:  # the user sets output_mult, so the mutation must change the layer itself
        model = build(shape)
        model.readout._width_mult = {"no_readout_mult": 1.0, "readout_sqrt": 2.0}[mutation]
        report = audit(model, optimizer(model), options=Options())
    else:
        report = audited(shape, mutation)
    name, quantity = FAULTS[mutation]
    assert not report.passed and "FAIL" in report.table()
    faulty = {row.name: row.faults for row in report.rows if not row.passed}
    assert quantity in faulty[name], report.table(only_faults=True)
    correct = {row.name for row in audited(shape).rows}
    assert set(faulty) < correct  # some rows have no fault


def test_an_sp_optimizer_and_a_plain_readout_fail() -> None:
    make = lambda w: nn.Sequential(nn.Linear(3, w), nn.Linear(w, w), nn.Linear(w, 2))  # noqa: E731
    model = mup.set_base_shapes(make(32), make(4), delta=make(8), do_assert=False)
    report = audit(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    assert {row.name for row in report.rows if not row.passed} == {"1.weight", "2()"}
    assert "8 times too large" in report.table(only_faults=True)


@pytest.mark.parametrize("make_optimizer", [MuAdamW, MuSGD])
def test_our_optimizers_pass_by_default(make_optimizer: Any) -> None:
    make = lambda w: nn.Sequential(nn.Linear(3, w), nn.Linear(w, 4 * w), MuReadout(4 * w, 2, output_mult=3.0))  # noqa: E731
    model = mup.set_base_shapes(make(32), make(4), delta=make(8))
    kind = "sgd" if make_optimizer is MuSGD else "adamw"
    report = audit(
        model,
        make_optimizer(model, lr=0.1, weight_decay=0.1),
        options=Options(optimizer=kind, eps_scaling=False),
    )
    assert report.passed, report.table()
    groups = param_groups(model, lr=0.1, weight_decay=0.1, eps=1e-8, width_mult=8.0)
    assert audit(model, torch.optim.AdamW(groups), options=Options(), width_mult=8.0).passed
    groups[0]["weight_decay"] = 0.3
    assert not audit(model, torch.optim.AdamW(groups), options=Options(), weight_decay=0.1, width_mult=8.0).passed


@pytest.mark.parametrize(("share", "passes"), [(0.99, True), (-0.99, True), (-1.01, False)])
def test_the_tolerance_of_a_std_is_two_percent_plus_five_standard_errors(share: float, passes: bool) -> None:
    """The standard error is std / sqrt(2 n) of the smaller sample, here the base with 4 x 8 entries."""
    layer, base, delta = (nn.Linear(*sizes, bias=False) for sizes in ((32, 16), (8, 4), (9, 5)))
    mup.set_base_shapes(layer, base, delta=delta)
    signs = torch.tensor([1.0, -1.0]).repeat(256).view(16, 32)
    tolerance = 0.02 + 5 / math.sqrt(2 * 4 * 8)
    with torch.no_grad():
        layer.weight.copy_(0.5 / 2 * (1 + share * tolerance) * signs)  # r = 4: half of the base std of 0.5
    assert audit(layer, base={"weight": 0.5}).passed is passes


def test_a_scheduler_that_resets_the_groups_is_found() -> None:
    torch.manual_seed(0)
    model = build(WIDE)
    opt = optimizer(model)
    for group in opt.param_groups:
        group["lr"] = LR
    report = audit(model, opt, options=Options())
    assert {row.role for row in report.rows if not row.passed} == {"hidden"}


def test_forgotten_dimensions_meta_tensors_and_a_model_without_optimizer() -> None:
    make = lambda v, w: nn.Sequential(nn.Embedding(v, w), MuReadout(w, 2))  # noqa: E731
    with pytest.warns(mup.ForgottenDimensionWarning), torch.device("meta"):
        model = mup.set_base_shapes(make(20, 32), make(10, 4), delta=make(10, 8))
    report = audit(model)
    assert report.passed and "dimension 0 is finite but differs from the base" in report.table()
    assert report.rows[0].measured == {} and report.rows[0].shape == [20, 32] and report.rows[0].base_shape == [None, 4]
    embedding = nn.Embedding(5, 4)
    tied = mup.set_base_shapes(nn.Sequential(embedding, MuSharedReadout(embedding.weight)), None)
    assert audit(tied, base={"0.weight": 1.0}).passed is (abs(float(embedding.weight.detach().std()) - 1) < 0.8)
    assert EPS == 1e-8


# --- convolutions, and torch's own attention ---


class _WithoutFactor(mup.MuOutConv2d):
    """A readout that forgot muP's factor."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.Conv2d.forward(self, input)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (mup.MuOutConv1d, {"padding": "same"}),
        (mup.MuOutConv2d, {"padding": 1, "output_mult": 3.0}),
        (mup.MuOutConv2d, {"stride": 2, "dilation": 3}),
        (mup.MuOutConv3d, {"groups": 2}),
        (mup.MuOutConvTranspose2d, {"stride": 2, "padding": 2}),
    ],
)
def test_the_factor_of_a_convolutional_readout_is_measured(kind: Any, options: dict[str, Any]) -> None:
    make = lambda width: nn.Sequential(kind(width, 4, 3, readout_zero_init=True, **options))  # noqa: E731
    model = mup.set_base_shapes(make(32), make(8), delta=make(16))
    [_, _, row] = audit(model).rows
    assert row.passed and row.name == "0()"
    assert row.measured["forward"] == pytest.approx(options.get("output_mult", 1.0) / 4)


def test_a_convolution_without_the_factor_is_a_fault() -> None:
    make = lambda width: nn.Sequential(_WithoutFactor(width, 4, 3))  # noqa: E731
    report = audit(mup.set_base_shapes(make(32), make(8), delta=make(16)))
    assert [row.name for row in report.rows if not row.passed] == ["0()"]
    assert "forward is 1, the rule says 0.25, 4 times too large" in report.table()
    plain = lambda width: nn.Sequential(nn.ConvTranspose2d(width, 4, 3))  # noqa: E731
    report = audit(mup.set_base_shapes(plain(32), plain(8), delta=plain(16), do_assert=False))
    assert [row.name for row in report.rows if not row.passed] == ["0()"]


@pytest.mark.parametrize("kind", ["weights", "fused", "encoder"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("heads", "base_heads", "passes"), [(8, 2, True), (2, 2, False)])
def test_the_attention_of_torch_is_seen(kind: str, training: bool, heads: int, base_heads: int, passes: bool) -> None:
    """It divides by the root of the head dimension: correct only if the number of heads grows with the width."""

    def make(width: int, heads: int) -> Any:
        if kind == "encoder":
            return nn.TransformerEncoderLayer(width, heads, width, dropout=0.0, batch_first=True)
        return nn.MultiheadAttention(width, heads, batch_first=True)

    model = mup.set_base_shapes(make(64, heads), make(16, base_heads), delta=make(32, base_heads), do_assert=False)
    model.train(training)
    x = torch.randn(2, 3, 64)
    run = {
        "weights": lambda: model(x, x, x),
        "fused": lambda: model(x, x, x, need_weights=False),
        "encoder": lambda: model(x),
    }[kind]
    rows = [row for row in audit(model, forward=run, base_head_dim=8).rows if row.role == "attention"]
    assert [(row.name, row.passed) for row in rows] == [("attention 0", passes)]
    assert rows[0].measured["attention_scale"] == pytest.approx((64 // heads) ** -0.5)


def test_a_forward_without_attention_is_a_fault() -> None:
    model = mup.set_base_shapes(nn.Sequential(nn.Linear(3, 3)), None)
    report = audit(model, forward=lambda: model(torch.ones(1, 3)))
    assert not report.passed and "no scale was measured" in report.table()
    assert audit(model).passed
