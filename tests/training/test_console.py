"""What a run prints: five opening lines, a summary, and commands that work."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys

import pytest

from megatron.initialize import initialize_megatron
from megatron.neox_arguments.resolve import run_config
from megatron.training.console import summary
from megatron.training.stop import StopRequest
from megatron.training.trainer import train
from tests.training.harness import ROOT, arguments, configuration, environment


def printed(config, capsys, **train_options):
    resolved = run_config(arguments(config))
    result = train(resolved, initialize_megatron(), **train_options)
    return capsys.readouterr().out.splitlines(), summary(result, resolved)


def test_a_run_opens_with_five_lines(corpus, tmp_path, capsys):
    lines, _ = printed(configuration(corpus, tmp_path / "log", save=str(tmp_path / "ck")), capsys)
    model, mup, data, devices, output = lines[:5]
    h, vocabulary = 64, 512  # CharLevelTokenizer
    block = 4 * h * h + 4 * h + 8 * h * h + 5 * h + 4 * h  # attention, MLP, two norms
    assert f"{2 * vocabulary * h + 2 * block + 2 * h:,} parameters ({2 * block + 2 * h:,} without" in model
    assert "base width 16, width multiplier 4: hidden lr x 0.25, init std x 0.5" in mup
    assert f"q.k x {16**0.5 / 16:.4g}, logits x 0.25" in mup, "the head dimension is that of the base: 1 / sqrt(16)"
    digest = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        content = corpus.with_name(corpus.name + suffix).read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    assert f"SHA-256 {digest.hexdigest()[:12]}" in data and "validation on 2 batches every 4 steps" in data
    assert "1 process on" in devices and "batch of 4 x 16 tokens, 8 steps" in devices
    assert f"metrics {tmp_path}/log/metrics.jsonl, checkpoints {tmp_path}/ck at the end, wandb off" in output


def test_the_standard_parametrization_is_named(corpus, tmp_path, capsys):
    config = configuration(corpus, tmp_path)
    plain = {key: value for key, value in config.items() if "mup" not in key}
    lines, _ = printed(plain, capsys)
    assert "standard parametrization" in lines[1]


def test_the_summary_says_where_everything_is_and_its_command_works(corpus, tmp_path):
    config = configuration(corpus, "log", save="ck", maximum_tokens=3)
    (tmp_path / "config.json").write_text(json.dumps(config))

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
        ).stdout

    lines = run(ROOT / "train.py", "config.json", "--train-iters", "6", "--hidden-size", "32").splitlines()
    first, where, following = lines[-3:]
    assert re.fullmatch(r"finished at step 6 of 6 in .*: 384 tokens, train loss .*, valid loss .*, test loss .*", first)
    assert where == "metrics in log/metrics.jsonl; checkpoint in ck/global_step6"
    program, script, *options = shlex.split(following.removeprefix("next: "))
    assert program == "python"
    (tmp_path / "prompts.txt").write_text("One prompt\n")
    run(ROOT / script, "--load", "ck", "-i", "prompts.txt", "-o", "samples.jsonl")
    assert json.loads((tmp_path / "samples.jsonl").read_text())["context"] == "One prompt"
    assert run(ROOT / script, *options).startswith("The "), "the checkpoint holds the configuration, with its overrides"


@pytest.mark.parametrize("saves", [True, False])
def test_a_stopped_run_says_how_to_continue(saves, corpus, tmp_path, capsys):
    stop = StopRequest()
    stop.requested = True
    folder = tmp_path / "ck"
    lines, end = printed(configuration(corpus, tmp_path, **({"save": str(folder)} if saves else {})), capsys, stop=stop)
    assert any(line.startswith("stop requested: step 1 is complete") for line in lines)
    assert end.startswith("stopped on request at step 1 of 8")
    assert f"to continue: the same command with --load {folder}" in end if saves else "nothing was saved" in end
