"""What a resume continues, says and refuses: samples, tokens, data, folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.checkpointing import load_weights
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import CheckpointError
from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments.resolve import run_config
from megatron.neox_arguments.run_config import TokenizerConfig
from megatron.training.resume import data_section
from megatron.training.stop import StopRequest
from megatron.training.trainer import Trainer
from tests.training.harness import (
    ROOT,
    arguments,
    configuration,
    losses,
    make_corpus,
    run_script,
    train_here,
    train_processes,
)

# A rate that no number of steps changes, so that a longer run has the schedule of the shorter one.
CONSTANT = {"lr_decay_style": "constant", "min_lr": 0, "warmup": 0, "lr_decay_iters": 1000, "do_valid": False}
CONSTANT |= {"do_test": False, "lr_cooldown_fraction": 0}


@pytest.fixture
def saving(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    folder = str(tmp_path / "ck")
    return configuration(corpus, tmp_path / "log", save=folder, load=folder, **CONSTANT)


class Recording(Trainer):
    """Notes the samples of every step."""

    def run(self, monitors, stop):
        self.seen: list[list[int]] = []
        batches = self.data.train_batches

        def recorded(consumed):
            for batch in batches(consumed):
                self.seen += batch["text"].tolist()
                yield batch

        self.data.train_batches = recorded
        return super().run(monitors, stop)


def samples_of(config, **changes) -> list[list[int]]:
    """Samples of one run, in order."""
    from megatron.monitoring import MonitorGroup

    resolved = run_config(arguments(config, **changes))
    trainer = Recording(resolved, initialize_megatron(seed=resolved.seed))
    trainer.run(MonitorGroup(), StopRequest())
    return trainer.seen


@pytest.mark.parametrize(("first", "second"), [(4, 8), (8, 4)])
def test_another_batch_size_continues_where_the_data_stands(saving, corpus, tmp_path, first, second):
    """3 steps of one size and 5 of another: the first samples of the order, each once, and tokens counted by hand."""
    order = GPTDataset(IndexedDataset(corpus), np.arange(48, dtype=np.int32), 64, 16, 1234, tmp_path / "cache")
    seen = samples_of(saving, train_batch_size=first, exit_interval=3)
    seen += samples_of(saving, train_batch_size=second)
    count = 3 * first + 5 * second
    assert seen == [order[i].tolist() for i in range(count)]
    state = load_weights(tmp_path / "ck").client_state
    assert (state["consumed_samples"], state["tokens"]) == (count, count * 16)


def test_tokens_in_the_metrics_are_those_trained_on(saving, capsys):
    train_here(saving, exit_interval=3)
    capsys.readouterr()
    result = train_here(saving, train_batch_size=8)
    assert result.tokens == (3 * 4 + 5 * 8) * 16
    records = read_metrics(Path(saving["log_dir"]) / "metrics.jsonl")[1]
    assert [record["tokens"] for record in records] == [16 * n for n in (4, 8, 12, 20, 28, 36, 44, 52)]
    out = capsys.readouterr().out
    folder = saving["save"]
    assert f"resumed from {folder}/global_step3 at step 3, 192 tokens; the data continues after sample 12" in out
    assert [line.split() for line in out.splitlines() if "train_batch_size" in line] == [["train_batch_size", "4", "8"]]
    assert f"saved {folder}/global_step8" in out


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_number_of_processes_keeps_the_order(saving, tmp_path, first, second):
    """The same global batch over other data-parallel sizes: the losses of one uninterrupted process."""
    train_here({**saving, "save": None, "load": None, "log_dir": str(tmp_path / "whole")})
    train_processes(first, {**saving, "exit_interval": 3}, tmp_path / "first")
    train_processes(second, saving, tmp_path / "second")
    records, whole = (read_metrics(tmp_path / name / "metrics.jsonl")[1] for name in ("log", "whole"))
    assert [record["tokens"] for record in records] == [record["tokens"] for record in whole]
    assert losses(tmp_path / "log") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_a_run_extended_past_an_epoch_is_the_long_run(tmp_path):
    """624 tokens are 38 samples of 16: 8 steps of 4 stay in the first epoch, 20 steps end in the third."""
    corpus = make_corpus(tmp_path / "data" / "x", documents=8, length=78)
    whole = configuration(corpus, tmp_path / "whole", split="1", train_iters=20, **CONSTANT)
    train_here(whole)
    parts = configuration(corpus, tmp_path / "parts", split="1", save=str(tmp_path / "ck"), load=str(tmp_path / "ck"))
    parts |= CONSTANT
    train_here(parts)
    train_here(parts, train_iters=20)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 20


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"seed": 7}, r"seed +1234 +7"),
        ({"split": "70,20,10"}, r"split +'80,10,10' +'70,20,10'"),
        ({"seq_length": 8}, r"seq_length +16 +8"),
        ({"data_path": "other"}, r"corpus.sha256 "),
        ({"data_path": None, "train_data_paths": ["same"]}, r"train_data_weights +\(absent\) +\[1.0\]"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_data_is_refused_with_a_table(saving, tmp_path, corpus, change, row):
    train_here(saving, exit_interval=3)
    paths = {"other": str(make_corpus(tmp_path / "other", length=220)), "same": str(corpus)}
    change = {key: paths.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    if "train_data_paths" in change:
        change["train_data_paths"] = [str(corpus)]
    with pytest.raises(CheckpointError, match=rf"(?s)trained on other data.*name +saved +now.*{row}.*override_data"):
        train_here(saving, **change)


def test_a_moved_corpus_is_the_same_corpus(saving, tmp_path, capsys):
    train_here(saving, exit_interval=3)
    moved = make_corpus(tmp_path / "moved")
    train_here(saving, data_path=str(moved))
    assert "data_paths" in capsys.readouterr().out
    train_here({**saving, "save": None, "load": None, "log_dir": str(tmp_path / "whole")})
    assert losses(tmp_path / "log") == losses(tmp_path / "whole")


def test_override_data_reads_the_new_data_from_its_start(saving, tmp_path, capsys):
    first = samples_of(saving, exit_interval=3)
    other = make_corpus(tmp_path / "other", length=220)
    order = GPTDataset(IndexedDataset(other), np.arange(48, dtype=np.int32), 20, 16, 1234, tmp_path / "cache")
    changes = {"data_path": str(other), "override_data": True}
    assert samples_of(saving, **changes, exit_interval=5) == [order[i].tolist() for i in range(8)]
    state = load_weights(tmp_path / "ck").client_state
    assert (state["consumed_samples"], state["tokens"]) == (8, len(first) * 16 + 8 * 16)
    assert samples_of(saving, **changes) == [order[i].tolist() for i in range(8, 20)]  # no change, so no new start


@pytest.mark.parametrize("change", [{"finetune": True}, {"no_load_optim": True}, {"do_train": False}, {"iteration": 3}])
def test_a_checkpoint_that_is_needed_must_be_there(saving, tmp_path, change):
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/ck holds no checkpoint"):
        train_here(saving, **change)


def test_a_run_without_a_checkpoint_says_that_it_starts(saving, tmp_path, capsys):
    train_here(saving)
    assert f"no checkpoint in {tmp_path}/ck: starting at step 0" in capsys.readouterr().out


def test_a_foreign_run_in_the_folder_is_refused_before_the_first_step(saving, tmp_path):
    train_here(saving)
    with pytest.raises(CheckpointError, match=r"holds checkpoints of another run \(step 8\)"):
        train_here(saving, load=None, log_dir=str(tmp_path / "second"))
    with pytest.raises(CheckpointError, match="holds checkpoints of another run"):
        train_here(saving, finetune=True)
    assert not (tmp_path / "second").exists()


def test_a_run_keeps_its_id_and_a_branch_gets_another(saving, tmp_path):
    def run_id(folder: str) -> str:
        return load_weights(tmp_path / folder).client_state["run"]["id"]

    train_here(saving, exit_interval=3)
    first = run_id("ck")
    train_here(saving, exit_interval=5)
    train_here(saving, save=str(tmp_path / "branch"))
    assert run_id("ck") == first != run_id("branch")


def test_an_evaluation_alone_leaves_its_losses_in_the_metrics(saving, tmp_path):
    changes = {"do_valid": True, "do_test": True}
    result = train_here(saving, **changes)
    train_here(saving, **changes, do_train=False, log_dir=str(tmp_path / "evaluated"))
    [record] = read_metrics(tmp_path / "evaluated" / "metrics.jsonl")[1]
    assert record["step"] == 8 and record["tokens"] == 8 * 4 * 16
    assert (record["valid/loss"], record["test/loss"]) == (result.valid_loss, result.test_loss)


def test_a_changed_schedule_is_a_table_not_a_model_that_does_not_fit(saving, tmp_path):
    train_here(saving, exit_interval=3)
    (tmp_path / "c.json").write_text(json.dumps({**saving, "lr_decay_iters": 2000}))
    done = run_script([str(ROOT / "train.py"), str(tmp_path / "c.json")])
    assert done.returncode == 1 and "does not fit" not in done.stderr
    assert "error: the checkpoint has another learning-rate schedule; set override_lr_scheduler" in done.stderr
    assert "  decay_iters: checkpoint 1000, configuration 2000\n" in done.stderr


def test_a_tokenizer_is_known_by_its_contents(saving, tmp_path):
    """A moved file is the same tokenizer, an edited one is another."""
    config = run_config(arguments(saving))
    sections = []
    for name, content in (("a.json", "{}"), ("b.json", "{}"), ("b.json", "[]")):
        (tmp_path / name).write_text(content)
        tokenizer = TokenizerConfig("HFTokenizer", str(tmp_path / name), None)
        sections.append(data_section(dataclasses.replace(config, tokenizer=tokenizer), {})["tokenizer"])
    assert sections[0] == sections[1] != sections[2]
    assert sections[0]["vocab_file"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # `{}`
