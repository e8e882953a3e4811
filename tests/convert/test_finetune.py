"""`load` with `finetune: true` starts a run from the weights of a checkpoint of GPT-NeoX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments.resolve import run_config
from megatron.training.trainer import Trainer
from muneox.commands import generate, inspect_checkpoints
from tests.convert import neox_files
from tests.model.helpers import build, config
from tests.training.harness import arguments, configuration, make_corpus, run_script, train_processes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "text_document")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """A checkpoint of GPT-NeoX from two tensor-parallel ranks, and its model."""
    model = build(
        config(hidden_size=64, ffn_hidden_size=256, vocab_size=512, padded_vocab_size=512, tied_readout=False)
    )
    return neox_files.write(model, tmp_path_factory.mktemp("neox"), size=2), model


def finetuning(corpus: Path, log: Path, load: Path, **changes: Any) -> dict[str, Any]:
    plain = configuration(corpus, log, load=str(load), finetune=True, hidden_size=64, **changes)
    return {key: value for key, value in plain.items() if "mup" not in key}


def test_a_run_starts_from_the_weights(corpus, saved, tmp_path):
    step, model = saved
    resolved = run_config(arguments(finetuning(corpus, tmp_path, step.parent)))
    trainer = Trainer(resolved, initialize_megatron(seed=resolved.seed))
    assert trainer.step == 0 and any("took the weights of" in notice for notice in trainer.notices)
    expected = model.state_dict()
    found = dict(trainer.train_module.model.global_named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter.detach(), expected[name]), name


def test_without_finetune_the_error_names_the_way_out(corpus, saved, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({**finetuning(corpus, tmp_path, saved[0].parent), "finetune": False}))
    done = run_script(["train.py", str(file)])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "was saved by GPT-NeoX" in done.stderr and "finetune: true" in done.stderr and "damaged" not in done.stderr


def test_inspection_lists_the_tensors(saved, capsys):
    assert inspect_checkpoints.main([str(saved[0].parent)]) == 0
    text = capsys.readouterr().out
    assert "saved by GPT-NeoX" in text and "damaged" not in text
    assert "step 7:" in text and "layer 05: norm.weight (rank 1)" in text


def test_text_is_sampled_from_it(corpus, saved, tmp_path, capsys):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(finetuning(corpus, tmp_path, saved[0])))
    assert generate.main([str(file), "--prompt", "abc", "--maximum-tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("abc")


@pytest.mark.slow
def test_a_pipeline_with_tensor_parallelism_and_zero_starts_with_the_same_loss(corpus, saved, tmp_path):
    losses = []
    for count, changes in (
        (1, {}),
        (4, {"model_parallel_size": 2, "pipe_parallel_size": 2}),
        (2, {"model_parallel_size": 2, "zero_optimization": {"stage": 3}}),
    ):
        log = tmp_path / f"log{count}"
        train_processes(count, finetuning(corpus, log, saved[0].parent, train_iters=1, **changes), tmp_path / "run")
        losses.append([r["train/loss"] for r in read_metrics(log / "metrics.jsonl")[1] if "train/loss" in r])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)
