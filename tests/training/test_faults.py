"""Losses and gradients that are not finite, and loss spikes: raise, skip and rewind, under several layouts."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.checkpointing import load_weights
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import ConfigError, TrainingError
from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments.resolve import run_config
from megatron.training.objective import Objective
from megatron.training.spikes import LossSpikes
from megatron.training.trainer import Trainer
from tests.training import poisoned
from tests.training.harness import (
    ROOT,
    arguments,
    configuration,
    environment,
    free_port,
    losses,
    make_corpus,
    train_here,
)

CONSTANT = {"lr_decay_style": "constant", "min_lr": 0, "warmup": 0, "lr_decay_iters": 1000, "do_valid": False}
CONSTANT |= {"do_test": False, "lr_cooldown_fraction": 0}
BAD_STEPS = [5]  # of batches of 4 samples, counted from 1


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A corpus in which one sample of each bad step holds the mark. Its position is found with the data's own order."""
    return mark(tmp_path_factory.mktemp("marked") / "text_document", BAD_STEPS)


def mark(prefix: Path, steps: list[int]) -> Path:
    plain = make_corpus(prefix.parent / "plain")
    config = configuration(plain, prefix.parent / "none", split="1", train_iters=12, **CONSTANT)
    data = Trainer(run_config(arguments(config)), initialize_megatron(seed=1234)).data
    indexed = IndexedDataset(plain)
    documents = [indexed.get(i).copy() for i in range(len(indexed))]
    for step in steps:
        # the last sample of the batch: on the last data-parallel rank. Its middle is in no other sample.
        index = step * 4 - 1
        dataset = data._datasets[0]
        assert isinstance(dataset, GPTDataset)
        sample = int(dataset.order.shuffle_idx[index])
        entry, offset = (int(x) for x in dataset.order.sample_idx[sample])
        document = int(dataset.order.doc_idx[entry])
        position = offset + 8
        if position >= len(documents[document]):
            document, position = int(dataset.order.doc_idx[entry + 1]), position - len(documents[document])
        documents[document][position] = poisoned.MARK
    builder = IndexedDatasetBuilder(prefix, np.uint16)
    for tokens in documents:
        builder.add_item(tokens)
        builder.end_document()
    builder.finalize()
    return prefix


def config_of(corpus: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    config = configuration(corpus, folder / "log", split="1", train_iters=8, **CONSTANT)
    return {**config, "save": str(folder / "ck"), "load": str(folder / "ck"), "checkpoint_factor": 2, **changes}


@pytest.fixture
def faulty(monkeypatch):
    """Poison the losses of this process."""
    monkeypatch.setattr(Objective, "loss", Objective.loss)
    return poisoned.install


def records(folder: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in read_metrics(folder / "log" / "metrics.jsonl")[1]}


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_weights(folder / "ck", step).weights)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def expected_losses(config: dict[str, Any], batches: list[int], without_update: Sequence[int] = ()) -> list[float]:
    """Losses of plain steps on the given batches (counted from 1), by a loop without policies and checkpoints."""
    plain = {**config, "save": None, "load": None, "train_iters": max(batches), "log_dir": config["log_dir"] + "-none"}
    plain |= {key: "raise" for key in ("nonfinite_policy", "loss_spike_policy") if key in plain}
    trainer = Trainer(run_config(arguments(plain)), initialize_megatron(seed=1234))
    found = []
    for batch in batches:
        if batch in without_update:
            continue
        found.append(trainer.train_module.train_step(trainer.data.train_batches((batch - 1) * 4)).loss)
    return found


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_raise_is_the_default_and_names_step_samples_and_the_way_out(marked, tmp_path, faulty, fault):
    faulty(fault)
    with pytest.raises(TrainingError) as caught:
        train_here(config_of(marked, tmp_path))
    message = str(caught.value)
    assert f"{'the loss is nan' if fault == 'loss' else 'the gradient is not finite'} at step 5" in message
    assert f"samples 16 to 19 of {marked}" in message and "the update was not made" in message
    assert f"The last checkpoint is {tmp_path}/ck/global_step4" in message
    assert "nonfinite_policy: skip or rewind" in message
    last = records(tmp_path)[5]
    assert (last["fault/first_sample"], last["fault/samples"]) == (16, 4)
    assert not np.isfinite(last["train/loss" if fault == "loss" else "grad_norm"])
    assert (tmp_path / "ck" / "latest").read_text() == "global_step4"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_skip_makes_no_update_and_keeps_the_schedule(marked, tmp_path, faulty, stage, fault):
    """Steps 1 to 4 and 6 to 8 are those of a run that never saw batch 5."""
    config = config_of(marked, tmp_path, zero_optimization={"stage": stage}, checkpoint_factor=1)
    config |= {"lr_decay_style": "linear", "lr_decay_iters": 8, "nonfinite_policy": "skip"}
    expected = expected_losses({**config, "lr_decay_style": "constant"}, [1, 2, 3, 4, 6], [5])
    rates = [0.01 * (1 - step / 8) for step in range(8)]
    faulty(fault)
    train_here({**config, "lr_decay_style": "constant", "train_iters": 6})
    assert same(weights(tmp_path, 4), weights(tmp_path, 5)) and not same(weights(tmp_path, 5), weights(tmp_path, 6))
    found = records(tmp_path)
    assert [found[step]["train/loss"] for step in (1, 2, 3, 4, 6)] == expected
    assert [found[step].get("fault/skipped_steps") for step in (4, 5, 6)] == [None, 1, None]
    other = tmp_path / "rates"
    train_here({**config, "save": None, "load": None, "log_dir": str(other / "log")})
    assert [record["lr"] for record in records(other).values()] == pytest.approx(rates)
    state = load_weights(tmp_path / "ck").client_state
    assert state["faults"]["skipped"] == 1 and state["consumed_samples"] == 24


def test_more_skips_in_a_row_than_the_limit_end_the_run(tmp_path, faulty):
    corpus = mark(tmp_path / "data", [3, 4, 5, 7])
    faulty("gradient")
    config = config_of(corpus, tmp_path, nonfinite_policy="skip")
    with pytest.raises(
        TrainingError, match=r"at step 5 .*; after 2 bad steps in a row \(nonfinite_limit\).*skip gives up"
    ):
        train_here(config, nonfinite_limit=2)
    assert train_here({**config, "save": None, "load": None}, nonfinite_limit=3).step == 8  # 7 does not follow on 5


def test_rewind_continues_after_the_bad_batch_and_a_resume_is_bit_equal(marked, tmp_path, faulty, capsys):
    """Step 5 is bad: back to step 4, whose next batch is the 6th. The same losses as a loop over these batches."""
    config = config_of(marked, tmp_path, nonfinite_policy="rewind", checkpoint_factor=3)
    expected = expected_losses(config, [1, 2, 3, 6, 7, 8, 9, 10])
    faulty("gradient")
    result = train_here(config)
    out = capsys.readouterr().out
    assert "at step 5 (loss 5." in out and "; the run rewinds. The batch is samples 16 to 19" in out
    assert f"rewound to {tmp_path}/ck/global_step3 at step 3; the data continues after sample 20" in out
    assert losses(tmp_path / "log") == expected and result.step == 8 and result.tokens == 8 * 4 * 16
    header, _ = read_metrics(tmp_path / "log" / "metrics.jsonl")
    assert header["rewound_to"] == [3]
    assert records(tmp_path)[3]["fault/rewound_from_step"] == 5 and records(tmp_path)[3]["fault/first_sample"] == 16
    state = load_weights(tmp_path / "ck").client_state
    assert state["faults"]["rewinds"] == [{"from_step": 5, "to_step": 3, "first_sample": 16, "samples": 4}]
    assert state["consumed_samples"] == 40
    # a resume from before the rewind rewinds again, one from after it continues: both end in the same weights
    for step in (3, 6):
        branch = {**config, "save": str(tmp_path / f"{step}" / "ck"), "iteration": step}
        train_here({**branch, "log_dir": str(tmp_path / f"{step}" / "log")})
        assert same(weights(tmp_path / f"{step}", 8), weights(tmp_path, 8)), step


def test_rewinds_without_progress_end_the_run(tmp_path, faulty):
    corpus = mark(tmp_path / "data", [5, 7, 9])  # from step 4: batches 6, [7]: step 6; 8, [9]: step 6
    faulty("loss")
    config = config_of(corpus, tmp_path, nonfinite_policy="rewind", checkpoint_factor=4, train_iters=6)
    with pytest.raises(TrainingError, match="rewind gives up"):
        train_here(config, nonfinite_limit=2)
    assert train_here(config, nonfinite_limit=3).step == 6


def test_rewind_without_a_checkpoint(marked, tmp_path, faulty):
    faulty("loss")
    with pytest.raises(TrainingError, match="at step 5, and there is no checkpoint to rewind to"):
        train_here(config_of(marked, tmp_path, nonfinite_policy="rewind", checkpoint_factor=6))
    with pytest.raises(ConfigError, match="nonfinite_policy: rewind loads the last checkpoint; set save"):
        arguments(configuration(marked, tmp_path, nonfinite_policy="rewind"))


def test_a_batch_of_a_blend_is_named_by_corpus(marked, tmp_path, faulty):
    other = make_corpus(tmp_path / "other")
    config = config_of(marked, tmp_path, split="969, 30, 1", data_path=None, nonfinite_policy="skip", train_iters=60)
    config |= {"train_data_paths": [str(other), str(marked)], "train_data_weights": [1, 3], "save": None, "load": None}
    faulty("loss")
    train_here(config)
    [record] = [record for record in records(tmp_path).values() if "fault/skipped_steps" in record]
    assert record["fault/samples/0"] == 1 and record["fault/samples/1"] == 3
    dataset = Trainer(run_config(arguments(config)), initialize_megatron(seed=1234)).data._datasets[0]
    first = record["fault/first_sample/1"]
    named = [dataset.datasets[1][first + i] for i in range(3)]
    assert any(poisoned.MARK in sample for sample in named)


def test_the_documents_of_a_batch_hold_its_samples(marked, tmp_path):
    data = Trainer(run_config(arguments(config_of(marked, tmp_path))), initialize_megatron(seed=1234)).data
    [part] = data.locate(16, 4)
    indexed = IndexedDataset(marked)
    assert any(poisoned.MARK in indexed.get(document) for document in part.documents)
    text = "".join(map(chr, np.concatenate([indexed.get(document) for document in part.documents])))
    for i in range(16, 20):
        assert "".join(map(chr, data._datasets[0][i][:8])) in text


# --- spikes ---


def test_the_deviation_is_the_hampel_identifier():
    """Second source: numpy's medians, and scipy's normalised median absolute deviation."""
    from scipy.stats import median_abs_deviation

    values = np.random.default_rng(0).normal(3.0, 0.1, 60)
    spikes = LossSpikes(21, 10.0)
    for step, value in enumerate(values):
        last = values[max(0, step - 21) : step]
        found = spikes.deviation(value)
        if len(last) < 21:
            assert found is None
        else:
            assert found == pytest.approx(
                (value - np.median(last)) / median_abs_deviation(last, scale="normal"), rel=1e-4
            )
        spikes.add(float(value))
    assert not spikes.is_spike(3.5) and spikes.is_spike(5.0) and not spikes.is_spike(1.0)
    spikes.add(float("nan"))
    assert spikes.losses == values[-21:].tolist()


def test_equal_losses_have_no_spike_below_one_percent():
    spikes = LossSpikes(5, 10.0)
    for _ in range(5):
        spikes.add(2.0)
    assert not spikes.is_spike(2.0199) and spikes.is_spike(2.0201)


@pytest.mark.parametrize("policy", ["warn", "skip", "raise", "off"])
def test_spikes(marked, tmp_path, faulty, policy, capsys):
    """The window is full after 4 steps, so step 5 is judged; the loss there is 5 higher than it is."""
    config = config_of(marked, tmp_path, loss_spike_policy=policy, loss_spike_window=4, checkpoint_factor=1)
    config |= {"optimizer": {"type": "Adam", "params": {"lr": 1e-4}}}  # the losses hardly change
    faulty("spike")
    if policy == "raise":
        with pytest.raises(TrainingError, match="the loss is a spike at step 5 .*raise loss_spike_threshold"):
            train_here(config)
        return
    train_here(config)
    found, out = records(tmp_path), capsys.readouterr().out
    assert ("fault/loss_spike" in found[5]) == (policy != "off") == ("the loss is a spike at step 5" in out)
    assert same(weights(tmp_path, 4), weights(tmp_path, 5)) == (policy == "skip")
    if policy != "off":
        before = [found[step]["train/loss"] for step in range(1, 5)]
        deviation = (found[5]["train/loss"] - np.median(before)) / max(
            1.4826 * np.median(np.abs(before - np.median(before))), 0.001 * np.median(before)
        )
        assert found[5]["fault/loss_spike"] == pytest.approx(deviation, rel=1e-9)
    saved = load_weights(tmp_path / "ck").client_state["faults"]
    assert saved["losses"] == [found[s]["train/loss"] for s in range(5, 9)]


# --- real processes ---

LAYOUTS = {
    "dp2": {},
    "tp2": {"model_parallel_size": 2},
    "pp2": {"pipe_parallel_size": 2},
    "zero1": {"zero_optimization": {"stage": 1}},
    "zero3": {"zero_optimization": {"stage": 3}},
    "pp2-zero1": {"pipe_parallel_size": 2, "zero_optimization": {"stage": 1}},
}


class Run:
    """A run of two processes with a fault."""

    def __init__(self, config: dict[str, Any], folder: Path, fault: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        port = str(free_port())
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.training.poisoned", str(folder / "config.json")],
                cwd=ROOT,
                env=environment(
                    FAULT=fault,
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE="2",
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]

    def end(self) -> tuple[list[int], str]:
        """Exit codes, and the output of all processes."""
        outputs = [process.communicate(timeout=300)[0] for process in self.processes]
        return [process.returncode for process in self.processes], "\n".join(outputs)


def run(config: dict[str, Any], folder: Path, fault: str) -> str:
    codes, output = Run(config, folder, fault).end()
    assert codes == [0, 0], output
    return output


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("fault", "policy"), [("loss", "skip"), ("gradient", "skip"), ("gradient", "rewind")])
def test_two_processes_agree_with_one(marked, tmp_path, layout, fault, policy):
    """The losses of one process that reads the batches that are left, and bit-equal after a resume at step 4 or 6."""
    config = config_of(marked, tmp_path, nonfinite_policy=policy, **LAYOUTS[layout])
    batches = [1, 2, 3, 4, 6, 7, 8] if policy == "skip" else [1, 2, 3, 4, 6, 7, 8, 9]
    expected = expected_losses(config_of(marked, tmp_path / "one"), batches)
    run(config, tmp_path, fault)
    found = records(tmp_path)
    steps = [step for step in found if policy == "rewind" or step != 5]
    assert [found[step]["train/loss"] for step in steps] == pytest.approx(expected, rel=1e-5)
    for step in (4, 6):
        branch = tmp_path / f"resumed-{step}"
        run({**config, "save": str(branch / "ck"), "iteration": step, "log_dir": str(branch / "log")}, branch, fault)
        assert same(weights(branch, 8), weights(tmp_path, 8)), step


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_two_processes_raise_together(marked, tmp_path, layout, fault):
    codes, output = Run(config_of(marked, tmp_path, **LAYOUTS[layout]), tmp_path, fault).end()
    assert codes == [1, 1] and "at step 5" in output and "Traceback" not in output, output
    assert (tmp_path / "ck" / "latest").read_text() == "global_step4"


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_signal_between_bad_steps_and_its_resume(tmp_path, policy):
    """Every third batch is bad. A run that is stopped and resumed ends in the weights of one that is not stopped.

    A rewind returns to the newest checkpoint. That can be the one of the stop, so its weights can differ: it must reach
    the last step without the bad batches.
    """
    corpus = mark(tmp_path / "data", [5, 8, 11])
    config = config_of(corpus, tmp_path / "whole", nonfinite_policy=policy, train_iters=12, checkpoint_factor=3)
    run(config, tmp_path / "whole", "gradient")
    parts = {**config, **{key: str(tmp_path / "parts" / "ck") for key in ("save", "load")}}
    parts["log_dir"] = str(tmp_path / "parts" / "log")
    stopped = Run(parts, tmp_path / "parts", "gradient")
    metrics = tmp_path / "parts" / "log" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in stopped.processes:
        process.send_signal(signal.SIGTERM)
    codes, output = stopped.end()
    assert codes == [0, 0], output
    run(parts, tmp_path / "parts", "gradient")
    found, expected = (losses(tmp_path / name / "log") for name in ("parts", "whole"))
    assert len(found) == len(expected) and all(map(math.isfinite, found))
    if policy == "skip":
        assert same(weights(tmp_path / "parts", 12), weights(tmp_path / "whole", 12))
        assert found == expected
