"""Checkpoints without optimizer state: smaller, with the same weights, and clear about how to load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing import load_weights
from megatron.errors import CheckpointError, ConfigError
from tests.training.harness import arguments, configuration, losses, train_here

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "zero1": {"zero_optimization": {"stage": 1}},
    "bf16": {"precision": "bfloat16"},
    "background": {"async_save": True},
}


def saved(corpus: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Train two steps and save them. Returns the configuration."""
    config = configuration(corpus, folder / "log", save=str(folder / "ck"), eval_iters=0, **changes)
    train_here(config, train_iters=2, lr_decay_iters=8)
    return config


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.pt"))


@pytest.mark.parametrize("name", PRECISIONS)
def test_only_the_optimizer_state_is_missing(corpus, tmp_path, name):
    keys = PRECISIONS[name]
    saved(corpus, tmp_path / "with", **keys)
    saved(corpus, tmp_path / "without", no_save_optim=True, **keys)
    whole, weights = (load_weights(tmp_path / part / "ck").weights for part in ("with", "without"))
    assert whole.keys() == weights.keys() and all(torch.equal(whole[key], weights[key]) for key in whole)
    # Adam has two moments in fp32, so a checkpoint of fp32 weights is three times as large with them
    assert size(tmp_path / "without") < 0.45 * size(tmp_path / "with")
    assert not list((tmp_path / "without").rglob("*optim_states.pt"))


@pytest.mark.parametrize("name", ["fp32", "zero1"])
def test_a_resume_says_what_is_missing_and_both_ways_out_work(corpus, tmp_path, name):
    config = saved(corpus, tmp_path, no_save_optim=True, **PRECISIONS[name]) | {"load": str(tmp_path / "ck")}
    with pytest.raises(
        CheckpointError, match="holds no optimizer state.*no_load_optim: true.* step 2 .*finetune: true"
    ):
        train_here(config, train_iters=4)
    again = {"save": None, "train_iters": 4, "lr_decay_iters": 8}
    assert train_here(config, **again, no_load_optim=True, log_dir=str(tmp_path / "no_load")).step == 4
    assert len(losses(tmp_path / "no_load")) == 2
    assert train_here(config, **again, finetune=True, log_dir=str(tmp_path / "finetune")).step == 4
    assert len(losses(tmp_path / "finetune")) == 4


def test_a_resume_under_another_layout_says_the_same(corpus, tmp_path):
    config = saved(corpus, tmp_path, no_save_optim=True) | {"load": str(tmp_path / "ck")}
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        train_here(config, train_iters=4, zero_optimization={"stage": 1})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "no_save_optim: ZeRO 3 keeps the weights in the optimizer state"),
        ({"nonfinite_policy": "rewind", "save": "x"}, "nonfinite_policy: rewind continues with the optimizer state"),
    ],
)
def test_what_needs_the_optimizer_state_is_refused(corpus, tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        arguments(configuration(corpus, tmp_path, no_save_optim=True, **keys))
