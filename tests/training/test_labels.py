"""Training on labels: the loss is the mean over the tokens that count, under every layout and over a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import CheckpointError
from megatron.initialize import initialize_megatron
from megatron.neox_arguments.resolve import run_config
from megatron.training.trainer import Trainer
from muneox.development.layouts import Layout
from tests.layouts.runs import train
from tests.mpu.distributed import run
from tests.training.harness import arguments, configuration, losses, run_script, train_here

UNTIED = "GPT, untied"
PACKINGS = ("packed", "pack_until_overflow", "unpacked")


def write(prefix: Path, documents: list[list[int]]) -> str:
    with IndexedDatasetBuilder(prefix, np.int32) as builder:
        for document in documents:
            builder.add_item(np.array(document))
            builder.end_document()
        builder.finalize()
    return str(prefix)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Keys of a corpus of progressions modulo 50 of 5 to 40 tokens, whose last tokens count: few, many or all."""
    folder, generator = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    texts, labels = [], []
    for _ in range(60):
        length = int(generator.integers(5, 41))
        tokens = ((generator.integers(50) + generator.integers(1, 4) * np.arange(length)) % 50 + 32).tolist()
        masked = int(generator.integers(0, length))
        texts.append(tokens)
        labels.append([-100] * masked + tokens[masked:])
    text, label = write(folder / "text", texts), write(folder / "label", labels)
    keys: dict[str, Any] = {"data_path": None}
    for part in ("train", "valid", "test"):
        keys |= {f"{part}_data_paths": [text], f"{part}_label_data_paths": [label]}
    return keys


def labelled_runs(layouts: list[Layout], keys: dict[str, Any]) -> list[list[float]]:
    """Losses and gradient norms of three steps, and the validation loss, of each layout."""
    found = []
    for layout in layouts:
        trainers: list[Any] = []
        step_losses, norms = train(layout, "", 3, inspect=trainers.append, **keys)
        found.append([*step_losses, *(norm for norm in norms if norm is not None), trainers[0].evaluate("valid")])
    return found


def masked_loss(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Mean negative log-likelihood of the tokens with a label, computed token by token in fp64."""
    nats, count = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            logits = model(batch["text"][:, :-1]).double()
        for row, labels in zip(logits, batch["label"][:, 1:].tolist(), strict=True):
            for position, label in enumerate(labels):
                if label != -100:
                    nats -= float(row[position].softmax(-1)[label].log())
                    count += 1
    return nats / count


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_loss_of_a_step_is_the_mean_over_the_tokens_that_count(labelled, tmp_path, packing):
    """Four microbatches of one sample, with different numbers of labels: no mean of means."""
    config = configuration(Path("x"), tmp_path / "log", **labelled, pack_impl=packing, eval_iters=2)
    args = arguments(config, train_batch_size=4, train_micro_batch_size_per_gpu=1)
    trainer = Trainer(run_config(args), initialize_megatron(seed=1))
    batches = trainer.data.train_batches()
    taken = [next(batches) for _ in range(4)]
    counts = [int((batch["label"][:, 1:] != -100).sum()) for batch in taken]
    assert len(set(counts)) > 1
    model = trainer.train_module.engine.module
    expected = masked_loss(model, taken)
    assert trainer.train_module.train_step(iter(taken)).loss == pytest.approx(expected, rel=1e-5)
    validation = list(trainer.data.evaluation_batches("valid") or ())[:8]
    assert trainer.evaluate("valid") == pytest.approx(masked_loss(model, validation), rel=1e-5)


def test_the_gradient_is_that_of_the_tokens_that_count(labelled, tmp_path):
    """Changing a label that does not count changes nothing; changing one that counts does."""
    config = configuration(Path("x"), tmp_path / "log", **labelled, pack_impl="unpacked")
    trainer = Trainer(run_config(arguments(config)), initialize_megatron(seed=1))
    batch = next(trainer.data.train_batches())
    masked, counted = ((batch["label"][:, 1:] < 0).nonzero()[0], (batch["label"][:, 1:] >= 0).nonzero()[0])
    norms = []
    for (row, column), value in ((masked, -7), (masked, -100), (counted, 90)):
        labels = batch["label"].clone()
        labels[row, column + 1] = value
        trainer = Trainer(run_config(arguments(config)), initialize_megatron(seed=1))
        trainer.train_module.train_step(iter([{"text": batch["text"], "label": labels}]))
        norms.append(trainer.train_module.grad_norm())
    assert norms[0] == norms[1] != norms[2]


TWO = [Layout(UNTIED, data=2, zero=1), Layout(UNTIED, tensor=2), Layout(UNTIED, pipe=2)]
FOUR = [Layout(UNTIED, pipe=4), Layout(UNTIED, pipe=2, data=2, zero=1), Layout(UNTIED, tensor=2, data=2)]


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize(
    ("layouts", "packing"),
    [(TWO, "unpacked"), pytest.param(FOUR, "pack_until_overflow", marks=pytest.mark.slow)],
    ids=["two", "four"],
)
def test_layouts_train_like_one_process(labelled, layouts, packing):
    """Losses and gradient norms of three steps, and the validation loss."""
    keys = {**labelled, "pack_impl": packing, "eval_iters": 2, "num_workers": 0}
    (expected,) = run(1, labelled_runs, [Layout(UNTIED)], keys)[0]
    for layout, found in zip(layouts, run(layouts[0].world_size, labelled_runs, layouts, keys)[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-5), layout.name


@pytest.mark.parametrize("packing", ["packed", "pack_until_overflow"])
def test_a_resume_continues_bit_for_bit(labelled, tmp_path, packing):
    """Two blended corpora with labels, over several epochs."""
    keys = {key: value and value * 2 for key, value in labelled.items()}
    keys |= {"pack_impl": packing, "train_data_weights": [3, 1], "num_workers": 1, "seq_length": 64}
    config = configuration(Path("x"), tmp_path / "whole", **keys)
    train_here(config)
    parts = {"save": str(tmp_path / "ck"), "load": str(tmp_path / "ck")}
    train_here(config, **parts, exit_interval=3, log_dir=str(tmp_path / "first"))
    train_here(config, **parts, log_dir=str(tmp_path / "second"))
    assert losses(tmp_path / "first")[:3] + losses(tmp_path / "second") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "first")) == 3


@pytest.mark.parametrize("change", ["labels", "packing"])
def test_a_resume_with_other_labels_or_packing_is_refused(labelled, tmp_path, change):
    config = configuration(Path("x"), tmp_path / "log", **labelled, pack_impl="unpacked", save=str(tmp_path / "ck"))
    train_here(config, train_iters=2)
    if change == "packing":
        keys = {"pack_impl": "pack_until_overflow"}
    else:
        text = IndexedDataset(labelled["train_data_paths"][0])
        other = write(tmp_path / "other", [text[i].tolist() for i in range(len(text))])
        keys = {"train_label_data_paths": [other]}
    with pytest.raises(CheckpointError, match="pack_impl" if change == "packing" else "sha256"):
        train_here(config, **keys, load=str(tmp_path / "ck"), train_iters=4)


def test_text_that_is_preprocessed_with_a_mask_trains_at_the_command_line(tmp_path):
    """preprocess_data_with_mask.py, train.py and eval.py. A model learns the answers, and not the questions."""
    generator = np.random.default_rng(1)
    lines = []
    for _ in range(200):
        question = "".join(map(chr, generator.integers(97, 123, 6)))
        lines.append(json.dumps({"text": f"{question}#{'yes' * 3}"}))
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    done = run_script(
        [
            "tools/datasets/preprocess_data_with_mask.py",
            *("--input", str(tmp_path / "chats.jsonl"), "--output-prefix", str(tmp_path / "chats")),
            *("--tokenizer-type", "CharLevelTokenizer", "--mask-before-token", str(ord("#")), "--workers", "1"),
        ]
    )
    assert done.returncode == 0, done.stderr
    text, label = sorted((str(path)[:-4] for path in tmp_path.glob("chats*.bin")), key=lambda path: "label" in path)
    keys: dict[str, Any] = {"data_path": None, "pack_impl": "unpacked", "train_iters": 40, "save": str(tmp_path / "ck")}
    for part in ("train", "valid", "test"):
        keys |= {f"{part}_data_paths": [text], f"{part}_label_data_paths": [label]}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(configuration(Path("x"), tmp_path / "log", **keys)))
    done = run_script(["train.py", str(file)])
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "log")[-1] < 0.9 < 6 * math.log(26) / 15  # the least loss if the questions counted
    valid = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [record["valid/loss"] for record in valid if record.get("valid/loss") and record["step"] == 40]
    done = run_script(
        ["eval.py", str(file), "--load", str(tmp_path / "ck"), "--eval_results_prefix", str(tmp_path / "e")]
    )
    assert done.returncode == 0, done.stderr
    (results,) = [json.loads(path.read_text()) for path in tmp_path.glob("e*.json")]
    assert results["valid"]["loss"] == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_label_data_paths": ["l"], "data_path": "x"}, "train_label_data_paths: needs train_data_paths"),
        ({"train_data_paths": ["x"], "train_label_data_paths": ["l", "m"]}, "2 paths for 1 train_data_paths"),
        (
            {"train_data_paths": ["x"], "train_label_data_paths": ["l"], "valid_data_paths": ["x"]},
            "valid_label_data_paths: missing, but train_label_data_paths is set",
        ),
        ({"allow_chopped": False}, "allow_chopped: pack_impl packed cuts every document"),
        ({"pack_impl": "loose"}, "pack_impl: expected"),
    ],
)
def test_contradictions_are_refused_at_the_edge(keys, message):
    from megatron.errors import ConfigError
    from megatron.neox_arguments import NeoXArgs

    with pytest.raises(ConfigError, match=message):
        NeoXArgs.from_dict(keys)
