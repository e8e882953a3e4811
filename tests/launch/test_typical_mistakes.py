"""Twelve typical mistakes of a first hour: each is one clear line that names the way out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from megatron.monitoring.jsonl import JsonlMonitor
from tests.training.harness import ROOT, configuration, environment, make_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_hour")
    make_corpus(folder / "text")
    (folder / "notes.txt").write_text("A few words are not a corpus.\n")
    target = configuration(folder / "text", folder / "log", train_iters=2)
    proxy = {**target, "hidden_size": 16, "num_attention_heads": 1}
    files = {"target": target, "proxy": proxy, "nodata": {**target, "data_path": "data/corpus/text_document"}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def run(folder, script, *options, **variables):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, options)],
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_line(done):
    """The only line on stderr, of a command that failed."""
    assert done.returncode, done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: "), line
    return line


def ladder(folder, sizes, **config):
    for size in sizes:
        monitor = JsonlMonitor(folder / str(size) / "metrics.jsonl")
        keys = {"lr": 0.01, "train_iters": 40, "hidden_size": size, **config}
        monitor.start({"config": keys, "model": {"params": size**2}, "train_batch_size": 4, "seq_length": 32})
        for step in (20, 40):
            monitor.log({"step": step, "tokens": step * 128, "valid/loss": 2 + 1 / size + 1 / step})
        monitor.close()
    return folder


TRAIN = ("deepy.py", "train.py")
PREDICT = "tools/scaling/predict_loss.py"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param([*TRAIN, "nodata.json"], "data/corpus/text_document.bin.*`python prepare_data.py`", id="no data"),
        pytest.param(["train.py", "nodata.json"], "text_document.bin.*`python prepare_data.py`", id="no data, worker"),
        pytest.param(
            [*TRAIN, "target.json", "--tokenizer-type", "HFTokenizer", "--vocab-file", "tokenizer.json"],
            "tokenizer.json.*`python prepare_data.py`",
            id="no tokenizer",
        ),
        pytest.param([*TRAIN, "configs/mup/bse.yml"], "bse.yml: configuration file not found", id="wrong path"),
        pytest.param([*TRAIN, "target.json", "--hiden-size", "64"], "hiden.size.*hidden.size", id="typo in a key"),
        pytest.param([*TRAIN, "target.json", "--n-layer", "2"], "n-layer.*num-layers", id="foreign key"),
        pytest.param(
            [*TRAIN, "target.json", "--num-attention-heads", "3"], "num_attention_heads.*3", id="number of heads"
        ),
        pytest.param(
            ["tools/mup/transfer.py", "target.json", "proxy.json"], "the narrower model, comes first", id="swapped"
        ),
        pytest.param(
            ["tools/mup/search.py", "target.json", "--trials", "2", "--target", "proxy.json"],
            "swap them",
            id="swapped in a search",
        ),
        pytest.param(
            [*TRAIN, "target.json", "--use-wandb", "--wandb-mode", "off"], "wandb_mode.*offline", id="wrong word"
        ),
    ],
)
def test_a_mistake_is_one_line_before_torch_is_imported(folder, command, words):
    script, *options = command
    done = run(folder, script, *options, PYTHONPROFILEIMPORTTIME="1")
    imports, lines = set(), []
    for line in done.stderr.splitlines():
        if line.startswith("import time:"):
            imports.add(line.split("|")[-1].strip())
        else:
            lines.append(line)
    done.stderr = "\n".join(lines)
    assert re.search(words, one_line(done))
    assert "megatron" in imports and not imports & {"torch", "deepspeed", "transformers"}


def test_two_sizes_are_too_few_for_a_forecast(folder):
    runs = ladder(folder / "two", (8, 16))
    assert "4" in one_line(run(folder, PREDICT, runs, "--y", "valid/loss", "--target", "1e6"))


def test_mixed_runs_get_a_filter_that_works(folder):
    runs = folder / "mixed"
    ladder(runs / "a", (8, 16, 32, 64), weight_decay=0.1)
    ladder(runs / "b", (8, 16, 32), weight_decay=0.2)
    ask = (PREDICT, runs, "--y", "valid/loss", "--target", "1e6")
    line = one_line(run(folder, *ask))
    assert line.endswith("keep some of them with --where weight_decay=0.1"), line
    done = run(folder, *ask, "--where", "weight_decay=0.1")
    assert done.returncode == 0, done.stderr


def test_another_corpus_is_not_replaced(folder):
    assert run(folder, "prepare_data.py", "--input", "notes.txt", "-t", "byte").returncode == 0
    before = (folder / "data/corpus/text_document.bin").read_bytes()
    (folder / "other.txt").write_text("Another text.\n")
    line = one_line(run(folder, "prepare_data.py", "--input", "other.txt", "-t", "byte"))
    assert "data/corpus holds another corpus (notes.txt)" in line and "--output-dir" in line and "--force" in line
    assert (folder / "data/corpus/text_document.bin").read_bytes() == before
    assert run(folder, "prepare_data.py", "--input", "other.txt", "-t", "byte", "--force").returncode == 0


def test_a_tiny_corpus_says_that_splits_are_empty(folder):
    done = run(folder, "prepare_data.py", "--input", "notes.txt", "-t", "byte", "--output-dir", "tiny")
    [line] = done.stderr.splitlines()
    assert "leaves no text to valid and test" in line and "split" in line


def test_a_folder_of_another_run_is_kept(folder):
    assert run(folder, "train.py", "proxy.json", "--save", "ck", "--eval-iters", "0").returncode == 0
    assert "ck" in one_line(run(folder, "train.py", "proxy.json", "--save", "ck", "--seed", "7"))


@pytest.mark.slow
def test_a_search_without_a_target_ends_with_a_command_that_works(folder):
    done = run(folder, "tools/mup/search.py", "proxy.json", "--trials", "1", "--eval-iters", "1")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("train the proxy with it: ")]
    assert line.endswith("train proxy.json runs/search/best.yml --eval-iters 1")
    used = run(folder, "deepy.py", "train.py", *line.split(" train ")[-1].split())
    assert used.returncode == 0, used.stderr


def test_ctrl_c_says_how_to_continue(folder):
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "proxy.json", "--save", "stopped", "--train-iters", "100000"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert next((line for line in lines if line.startswith("step 2/")), None), "it trains"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest = list(lines)
    assert process.wait(timeout=60) == 0
    assert rest[-1] == "to continue: the same command with --load stopped\n"


def test_a_dry_run_through_the_launcher_starts_no_process(folder):
    done = run(folder, "deepy.py", "train.py", "proxy.json", "--dry-run")
    assert done.returncode == 0 and "predicted on" in done.stdout, done.stderr
    assert "generate.py" in one_line(run(folder, "deepy.py", "train.py", "proxy.json", "--dry-run", "--prompt", "x"))
