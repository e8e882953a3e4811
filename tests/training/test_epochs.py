"""train_epochs: as many steps as whole batches fit in the epochs, which read every sample once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron.errors import ConfigError
from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments.resolve import audit_config, run_config
from megatron.training.data import build_datasets
from tests.training.harness import arguments, configuration, losses, make_corpus, run_script, train_here


def keys(corpus: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """The corpus has 60 documents of 200 tokens, of which 48 are for training: 9600 tokens."""
    return configuration(
        corpus, folder, train_iters=None, train_epochs=2, seq_length=64, train_batch_size=40, **changes
    )


def test_two_epochs_end_with_their_last_whole_batch(corpus, tmp_path):
    """An epoch has 9599 targets, hence 149 samples of 64: two have 298, hence 7 batches of 40."""
    config = keys(corpus, tmp_path / "log", eval_iters=0)
    assert train_here(config).step == 7
    header = read_metrics(tmp_path / "log" / "metrics.jsonl")[0]
    assert header["config"]["train_iters"] == 7
    assert losses(tmp_path / "log") == losses_of_seven_steps(config, tmp_path / "other")
    assert audit_config(arguments(config)).keys["train_iters"] == 7
    assert run_config(arguments(config)).schedule.decay_iters == 7


def losses_of_seven_steps(config: dict[str, Any], folder: Path) -> list[float]:
    train_here(config, train_epochs=None, train_iters=7, log_dir=str(folder))
    return losses(folder)


def test_corpora_of_different_sizes_end_their_epochs_together(tmp_path):
    """60 and 20 documents of 200 tokens: 187 and 62 samples of 64 per epoch."""
    paths = [str(make_corpus(tmp_path / name, documents=count)) for name, count in (("large", 60), ("small", 20))]
    config = keys(tmp_path / "x", tmp_path / "log", data_path=None, train_data_paths=paths, eval_iters=0)
    resolved = run_config(arguments(config, train_batch_size=3))
    assert resolved.steps == 2 * (187 + 62) // 3
    train, _, _ = build_datasets(resolved.data, initialize_megatron(), 512, (resolved.steps * 3, 0, 0))
    located = train.locate(0, 2 * (187 + 62))
    assert [abs(part.count - 2 * samples) <= 1 for part, samples in zip(located, (187, 62), strict=True)] == [True] * 2


def test_a_resume_ends_at_the_same_step(corpus, tmp_path):
    config = keys(corpus, tmp_path / "first", save=str(tmp_path / "ck"), load=str(tmp_path / "ck"), eval_iters=0)
    train_here(config, exit_interval=4)
    assert train_here(config, log_dir=str(tmp_path / "second")).step == 7
    assert len(losses(tmp_path / "second")) == 3


def test_too_little_data_for_a_batch_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="train_epochs: 2 epochs of the data are 298 samples .* train_batch_size 299"):
        run_config(arguments(keys(corpus, tmp_path), train_batch_size=299))


def test_the_command_line_trains_epochs(corpus, tmp_path):
    import json

    file = tmp_path / "config.json"
    file.write_text(json.dumps(keys(corpus, tmp_path / "log", eval_iters=0)))
    done = run_script(["train.py", str(file)])
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "log")) == 7
