"""checkpoint_validation_with_forward_pass: the loss on fixed tokens travels with a checkpoint and is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.errors import CheckpointError
from megatron.training import run_checkpoints
from tests.training.harness import configuration, losses, train_here

KEY = "checkpoint_validation_with_forward_pass"
CONSTANT = {"lr_decay_style": "constant", "min_lr": 0, "warmup": 0, "lr_decay_iters": 100, "lr_cooldown_fraction": 0}


@pytest.fixture(scope="module")
def saved(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 4 steps that saved with the key."""
    folder = tmp_path_factory.mktemp("saved")
    keys = {"train_iters": 4, **CONSTANT, "save": str(folder / "ck"), KEY: True}
    train_here(configuration(corpus, folder / "logs", **keys))
    return folder


def resume(corpus: Path, saved: Path, folder: Path, **changes: Any) -> list[float]:
    keys = {"load": str(saved / "ck"), **CONSTANT, KEY: True, **changes}
    train_here(configuration(corpus, folder, **keys))
    return losses(folder)


def spoil(patch: pytest.MonkeyPatch, by: float) -> None:
    """Let every load change the gain of the final norm."""
    load = run_checkpoints.load_checkpoint

    def spoiled(engine: Any, *args: Any, **options: Any) -> Any:
        loaded = load(engine, *args, **options)
        with torch.no_grad():
            next(p for name, p in engine.module.named_parameters() if "final_norm.weight" in name).add_(by)
        return loaded

    patch.setattr(run_checkpoints, "load_checkpoint", spoiled)


def test_the_comparison_changes_no_loss(corpus: Path, saved: Path, tmp_path: Path) -> None:
    train_here(configuration(corpus, tmp_path / "whole", **CONSTANT))
    assert losses(saved / "logs") + resume(corpus, saved, tmp_path / "rest") == losses(tmp_path / "whole")


def test_other_weights_are_refused(corpus: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 0.05)
    with pytest.raises(CheckpointError, match=r"global_step4: the loss of the loaded weights on fixed tokens is \d"):
        resume(corpus, saved, tmp_path / "a")
    assert len(resume(corpus, saved, tmp_path / "b", **{KEY: False})) == 4


def test_a_checkpoint_without_the_loss_loads(corpus: Path, tmp_path: Path) -> None:
    keys = {"train_iters": 4, **CONSTANT, "save": str(tmp_path / "ck")}
    train_here(configuration(corpus, tmp_path / "logs", **keys))
    assert len(resume(corpus, tmp_path, tmp_path / "rest")) == 4
