"""Hugging Face's GPT-2, whose readout shares the weight of the embedding, in muP through the library alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import mup
from mup.coord_check import coord_records, verdict

transformers = pytest.importorskip("transformers")

HEAD, VOCAB, LENGTH, STD = 16, 64, 16, 0.02
WIDTHS = (32, 64, 128, 256)


def plain(width: int) -> Any:
    """Two layers with heads of one size, as transformers builds it."""
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=2,
        n_head=width // HEAD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
    )
    return transformers.GPT2LMHeadModel(config)


def with_readout(width: int) -> Any:
    model = plain(width)
    model.lm_head = mup.MuSharedReadout(model.transformer.wte.weight, bias=False)
    return model


def in_mup(width: int) -> Any:
    """Base width 32. The hidden matrices start again, by muP's rule, since transformers draws all with one std."""
    with torch.device("meta"):
        base, delta = with_readout(32), with_readout(64)
    model = mup.set_base_shapes(with_readout(width), base, delta=delta, rescale_params=False)
    module: Any
    for module in model.modules():
        if type(module).__name__ == "Conv1D":
            mup.init.normal_(module.weight, std=STD)
    return model


@functools.cache
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(VOCAB, (8, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return text[:, :-1], text[:, 1:]


def loss_step(model: Any, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad()
    logits = model(batch[0]).logits
    nn.functional.cross_entropy(logits.reshape(-1, VOCAB), batch[1].reshape(-1)).backward()
    optimizer.step()


def records(build: Any, optimizer: Any) -> Any:
    models = {width: functools.partial(build, width) for width in WIDTHS}
    return coord_records(models, batch(), optimizer, train_step=loss_step, seeds=(0, 1, 2))


def test_its_plain_readout_is_refused() -> None:
    with pytest.raises(mup.ShapeError, match="lm_head shares the weight of an embedding"):
        mup.set_base_shapes(plain(64), plain(32), delta=plain(64))


def test_the_audit_passes_and_sees_every_layer() -> None:
    model = in_mup(128)
    optimizer = mup.MuAdamW(model, lr=1e-3)
    report = mup.audit(model, optimizer, base=in_mup(32), forward=lambda: model(batch()[0]), base_head_dim=HEAD)
    assert report.passed, report.table(only_faults=True)
    rows = {row.name: row for row in report.rows}
    assert "attention 0" in rows and "attention 1" in rows and "attention 2" not in rows
    assert rows["lm_head()"].measured["forward"] == pytest.approx(1 / 4)
    mlp = rows["transformer.h.1.mlp.c_proj.weight"].measured
    assert mlp["lr"] == pytest.approx(1e-3 / 4)
    assert mlp["init_std"] == pytest.approx(STD / 2, rel=0.02)


def test_the_coordinate_check_passes_and_finds_the_standard_parametrization() -> None:
    sp = records(plain, lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3))
    result = verdict(records(in_mup, lambda model: mup.MuAdamW(model, lr=3e-3)), reference=sp)
    assert result.passed, result.table(only_failures=True)
    assert result.powerless is False
    assert not verdict(sp).passed
