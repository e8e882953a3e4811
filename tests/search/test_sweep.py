"""A sweep trains every run of the grid once, with the same result as the trainer alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.errors import ConfigError, UserError
from megatron.initialize import initialize_megatron
from megatron.monitoring import read_metrics
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import run_config
from megatron.training.trainer import train
from muneox.analysis.families import by_parametrization, family
from muneox.commands import sweep
from muneox.runs import read_runs
from tests.search.tiny import ROOT, environment

GRID = ("--widths", "16", "32", "--seeds", "1", "2", "--grid", "use-mup=true,false")


def final_loss(folder: Path) -> float:
    return read_metrics(folder / "metrics.jsonl")[1][-1]["valid/loss"]


def kill(job: sweep.Job) -> tuple[sweep.Job, float | None, str]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.xdist_group("multiprocess")
def test_every_run_is_trained_once_and_equals_the_trainer_alone(
    proxy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    command = [str(proxy), *GRID, "--grid", "lr=2^-7", "--workers", "2", "--out", str(out)]
    assert sweep.main(command) == 0
    printed = capsys.readouterr().out
    assert "8 runs in" in printed and "[8/8," in printed and "grad norm" not in printed
    members = by_parametrization(family(read_runs([str(out)]), "a test"))
    for members_of_one in members.values():
        assert [(m.width, m.seed, m.lr) for m in members_of_one] == [
            (width, seed, 2.0**-7) for width in (16, 32) for seed in (1, 2)
        ]
    name = "w32-s2-use_mup=True-lr=0.0078125"
    alone = NeoXArgs.from_ymls([str(proxy)], world_size=1).replace(
        hidden_size=32,
        num_attention_heads=4,
        lr=2.0**-7,
        min_lr=2.0**-7 / 10,
        seed=2,
        do_test=False,
        log_dir=str(tmp_path / "alone"),
    )
    loss = final_loss(out / name)
    assert train(run_config(alone), initialize_megatron(seed=2), console=False).valid_loss == loss

    # Only the run that was killed is trained again, and it reaches the same loss.
    file = out / name / "metrics.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    others = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl") if path != file}
    assert sweep.main(command) == 0
    assert "7 of them already finished" in capsys.readouterr().out
    assert final_loss(out / name) == loss
    assert others == {path: path.stat().st_mtime_ns for path in others}
    with pytest.raises(ConfigError, match="holds a run with eval_iters 2, this sweep has 1; choose another --out"):
        sweep.main([*command, "--eval-iters", "1"])
    # A key that returns to its default also makes another configuration.
    plain = tmp_path / "plain.yml"
    plain.write_text(json.dumps({k: v for k, v in json.loads(proxy.read_text()).items() if k != "lr-decay-style"}))
    with pytest.raises(ConfigError, match="holds a run with lr_decay_style 'cosine', this sweep has"):
        sweep.main([str(plain), *command[1:]])
    lines = file.read_text().splitlines()
    header = json.loads(lines[0])
    header["corpus"]["sha256"] = "b" * 64
    file.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    with pytest.raises(ConfigError, match=r"holds a run on .* bytes with SHA-256 b{12}.* and this sweep's corpus has"):
        sweep.main(command)


@pytest.mark.xdist_group("multiprocess")
def test_divergence_is_reported_and_the_other_runs_continue(
    proxy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--grid", "mup-embedding-mult=1.0,1e38")
    assert sweep.main([str(proxy), *grid, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "w16-s1234-mup_embedding_mult=1e+38: diverged" in printed and "1 runs diverged" in printed
    assert final_loss(tmp_path / "w16-s1234-mup_embedding_mult=1") > 0


@pytest.mark.xdist_group("multiprocess")
def test_a_killed_process_is_reported_instead_of_awaited(
    proxy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "train_job", kill)
    with pytest.raises(UserError, match="a process was killed; run the same command again"):
        sweep.main([str(proxy), "--out", str(tmp_path)])


@pytest.mark.xdist_group("multiprocess")
def test_no_process_outlives_a_killed_sweep(proxy: Path, tmp_path: Path) -> None:
    options = ("--train-iters", "100000", "--eval-interval", "100000", "--log-interval", "1")
    command = [sys.executable, str(ROOT / "tools/mup/sweep.py"), str(proxy), *options, "--out", str(tmp_path)]
    parent = subprocess.Popen(command, env=environment(), start_new_session=True)
    file = tmp_path / "w16-s1234" / "metrics.jsonl"
    wait_for(lambda: file.is_file() and file.read_bytes().count(b"\n") > 2)  # the header and two steps
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive_group(parent.pid))
    assert len(read_metrics(file)[1]) > 1


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def is_alive_group(group: int) -> bool:
    """Whether a process of the group is running. Zombies do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--grid", "lr"], "expected KEY=VALUE,VALUE"),
        (["--grid", "lr=0.1", "--grid", "lr=0.2"], "given twice"),
        (["--grid", "lr=0.1,0.1"], "given twice"),
        (["--grid", "learning-rat=0.1"], "learning-rat"),
        (["--widths", "20"], "num_attention_heads 2 at hidden-size 16 would become 2.5"),
        (["--grid", "lr=much"], "lr"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_bad_grids_are_refused(proxy: Path, tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep.main([str(proxy), "--out", str(tmp_path / "none"), *options])
    assert said in str(caught.value) and not (tmp_path / "none").exists()


def test_values_of_a_grid() -> None:
    grid = sweep.parse_grid(["lr=2^-9, 3e-4", "use-mup=true,false", "num-layers=2,4"])
    assert grid == {"lr": [2.0**-9, 3e-4], "use-mup": [True, False], "num-layers": [2, 4]}
    assert json.dumps(grid["use-mup"]) == "[true, false]"
