"""Entry scripts as users run them: a mistake gives one sentence and an exit code, never a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.training.harness import configuration, make_corpus, run_script


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entry")
    prefix = make_corpus(folder / "text_document")
    (folder / "config.json").write_text(json.dumps(configuration(prefix, folder / "log")))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--hiden-size", "64"], 2, ["hiden", "hidden"]),
        (["--num-attention-heads", "3"], 2, ["num_attention_heads", "64"]),
        (["--use-mup", "false", "--coord-check"], 2, ["coord_check", "use_mup"]),
        (["--data-path", "nowhere/text_document"], 1, ["nowhere/text_document"]),
        (["--tokenizer-type", "HFTokenizer", "--vocab-file", "nowhere.json"], 1, ["nowhere.json"]),
        (["--base-shapes-file", "nowhere"], 1, ["base-shapes-file", "nowhere.0"]),
        (["--precision", "fp16"], 2, ["fp16", "bfloat16"]),
    ],
)
def test_a_mistake_gives_one_sentence_and_an_exit_code(config, options, code, words):
    if "fp16" in words and "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        pytest.skip("this device trains in fp16")
    done = run_script(["train.py", str(config), *options])
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and all(word in done.stderr for word in words), done.stderr


def test_the_launcher_returns_the_workers_exit_code(config):
    done = run_script(["deepy.py", "train.py", str(config), "--data-path", "nowhere/text_document"])
    assert done.returncode == 1
    assert "nowhere/text_document" in done.stderr and "Traceback" not in done.stderr


def test_a_corrupt_data_file_is_named(config, tmp_path):
    prefix = make_corpus(tmp_path / "cut_document")
    with Path(f"{prefix}.bin").open("r+b") as stream:
        stream.truncate(100)
    done = run_script(["train.py", str(config), "--data-path", str(prefix)])
    assert done.returncode == 1 and "cut_document.bin" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["train.py", "deepy.py", "generate.py", "prepare_data.py", "tools/mup/audit.py"])
def test_help_is_short_and_exits_0(script):
    done = run_script([script, "--help"])
    assert done.returncode == 0 and "usage" in done.stdout.lower() and not done.stderr


def test_main_takes_arguments_and_overwrite_values(config, tmp_path):
    import train

    overwrite = {"log_dir": str(tmp_path), "train_iters": 1, "eval_iters": 0}
    assert train.main([str(config)], overwrite_values=overwrite) == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    overwrite["log_dir"] = str(tmp_path / "again")  # one process can train several times
    assert train.main([str(config)], overwrite_values=overwrite) == 0
