"""Half precision with DeepSpeed's optimizer wrappers: the first update, and gradients that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from megatron.initialize import initialize_megatron
from megatron.neox_arguments.resolve import audit_config, coordinate_check_config, run_config
from megatron.training.trainer import Trainer
from tests.training.harness import arguments, configuration, losses, train_here

LR = 0.25
STAGES = [0, 1, 2, 3]


def trainer_of(corpus: Path, folder: Path, stage: int) -> Trainer:
    config = configuration(
        corpus,
        folder,
        use_mup=False,
        optimizer={"type": "Adam", "params": {"lr": LR, "betas": [0.9, 0.95], "eps": 1e-8}},
        min_lr=LR,
        lr_decay_style="constant",
        warmup=0.0,
        weight_decay=0.1,
        gradient_clipping=0.0,
        precision="bfloat16",
        zero_optimization={"stage": stage},
        do_valid=False,
        do_test=False,
    )
    return Trainer(run_config(arguments(config)), initialize_megatron(seed=1234))


def matrix(trainer: Trainer) -> torch.nn.Parameter:
    model: Any = trainer.train_module.model
    weight: torch.nn.Parameter = model.layers[0].mlp.dense_h_to_4h.weight
    return weight


def full(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole values of a parameter, also if ZeRO 3 partitions it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().float().clone()


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_update_of_adam_is_the_learning_rate(corpus: Path, tmp_path: Path, stage: int):
    """At t = 1 both bias-corrected moments are those of the gradient, so the update is lr * g / |g|.

    Source: Kingma and Ba, arXiv:1412.6980, algorithm 1. Decoupled weight decay adds lr * 0.1 * w for weights near 0.02.
    """
    trainer = trainer_of(corpus, tmp_path, stage)
    before = full(matrix(trainer))
    trainer.train_module.train_step(trainer.data.train_batches())
    change = (full(matrix(trainer)) - before * (1 - LR * 0.1)).abs()
    assert change.median() == pytest.approx(LR, rel=0.01)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_makes_no_update(corpus: Path, tmp_path: Path, stage: int, value: float):
    trainer = trainer_of(corpus, tmp_path, stage)
    parameter, batches = matrix(trainer), trainer.data.train_batches()
    trainer.train_module.train_step(batches)
    before = full(parameter)
    hook = trainer.train_module.model.final_norm.register_full_backward_hook(
        lambda module, inputs, outputs: (cast(Any, inputs)[0].index_fill(-1, torch.tensor(0), value),)
    )
    trainer.train_module.train_step(batches)
    hook.remove()
    assert torch.equal(full(parameter), before)
    trainer.train_module.train_step(batches)
    assert not torch.equal(full(parameter), before) and full(parameter).isfinite().all()


@pytest.mark.slow
def test_compiled_layers_give_the_losses_of_eager_layers(corpus: Path, tmp_path: Path):
    eager = configuration(corpus, tmp_path / "eager", train_iters=4, eval_iters=0)
    compiled = configuration(corpus, tmp_path / "compiled", train_iters=4, eval_iters=0, torch_compile=True)
    train_here(eager)
    train_here(compiled)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def test_jobs_with_module_hooks_do_not_compile(corpus: Path, tmp_path: Path):
    args = arguments(configuration(corpus, tmp_path, torch_compile=True))
    assert run_config(args).engine.compile
    assert not coordinate_check_config(args).engine.compile and not audit_config(args).engine.compile
