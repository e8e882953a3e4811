"""Save schedule, comparison of muP sections, random states and the inspection tool."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.checkpointing import check_unchanged, save_iterations
from megatron.checkpointing.integrity import load_safely, write_torch
from megatron.checkpointing.load import load_checkpoint
from megatron.checkpointing.rng import restore_rng_state, rng_state
from megatron.errors import CheckpointError, ConfigError
from muneox.commands import inspect_checkpoints
from tests.checkpointing import harness


def test_save_iterations_match_gpt_neox() -> None:
    assert save_iterations(1000, "linear", 250) == {250, 500, 750}
    assert save_iterations(1000, "log", 10) == {10, 100}
    assert save_iterations(100, "log", 2, [0, 1, 99]) == {0, 1, 2, 4, 8, 16, 32, 64, 99}
    assert save_iterations(10, "linear", 100) == set()
    assert save_iterations(5, "linear", 1) == {1, 2, 3, 4}
    assert save_iterations(10, checkpoint_factor=None, extra_save_iters=[3]) == {3}
    assert save_iterations(12, "log", 1.5) == {2, 3, 5, 8, 11}


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("log", 1), ("log", 0.5), ("linear", 0), ("linear", -3), ("cubic", 2)],
)
def test_save_iterations_refuses_a_factor_without_progress(scale: Any, factor: float) -> None:
    with pytest.raises(ConfigError, match="checkpoint-"):
        save_iterations(100, scale, factor)


@given(train_iters=st.integers(1, 3000), factor=st.integers(2, 50), scale=st.sampled_from(["linear", "log"]))
def test_whole_factors_follow_the_definition(train_iters: int, factor: int, scale: Any) -> None:
    if scale == "linear":
        expected = set(range(factor, train_iters, factor))
    else:
        expected = {factor**power for power in range(1, 13) if factor**power < train_iters}
    assert save_iterations(train_iters, scale, factor) == expected


SECTION = {"base": {"hidden_size": 256, "num_layers": 4}, "attn_temp": 1.0, "lr_mult": {"hidden": 0.25}}


def test_unchanged_sections_pass() -> None:
    check_unchanged(SECTION, {**SECTION, "base": dict(SECTION["base"])})  # type: ignore[call-overload]
    check_unchanged({"shape": [1, 2]}, {"shape": (1, 2)})
    check_unchanged({}, {})


def test_changes_are_shown_in_a_table() -> None:
    base = {"hidden_size": 128, "num_layers": 4}
    now = {"base": base, "attn_temp": 1.0, "lr_mult": {"hidden": 0.125}, "new": 3}
    with pytest.raises(CheckpointError) as caught:
        check_unchanged(SECTION, now)
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["name", "saved", "now"] in lines
    assert ["base.hidden_size", "256", "128"] in lines
    assert ["lr_mult.hidden", "0.25", "0.125"] in lines
    assert ["new", "(absent)", "3"] in lines
    assert "attn_temp" not in str(caught.value) and "num_layers" not in str(caught.value)


def test_a_long_table_is_truncated() -> None:
    saved, now = ({"lr_mult": {str(i): value for i in range(100)}} for value in (1.0, 0.5))
    with pytest.raises(CheckpointError, match=r"\.\.\. and 60 more"):
        check_unchanged(saved, now)


@given(value=st.floats(0.01, 10), path=st.sampled_from(["attn_temp", "base.hidden_size", "lr_mult.hidden"]))
def test_any_change_is_detected(value: float, path: str) -> None:
    changed: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in SECTION.items()}
    owner, _, leaf = path.rpartition(".")
    place = changed[owner] if owner else changed
    if place[leaf] == value:
        return
    place[leaf] = value
    with pytest.raises(CheckpointError, match=path):
        check_unchanged(SECTION, changed)


def test_a_changed_parametrization_stops_the_resume_before_any_change(one_process: None, checkpoints: Path) -> None:
    fresh = harness.build_engine(1, seed=3)
    before = {name: value.clone() for name, value in fresh.module.state_dict().items()}
    changed = {**harness.MUP, "lr_mult": {"hidden": 0.25, "vector": 1.0}}
    with pytest.raises(CheckpointError, match=r"lr_mult.hidden +0.5 +0.25"):
        load_checkpoint(fresh, checkpoints, mup=changed)
    with pytest.raises(CheckpointError, match=r"embedding_mult +1.0 +\(absent\)"):
        load_checkpoint(fresh, checkpoints, mup={})  # muP switched off
    assert all(torch.equal(before[name], value) for name, value in fresh.module.state_dict().items())


def draw() -> tuple[float, ...]:
    gaussian = random.gauss(0, 1)  # keeps a second value for the next call, as NumPy does
    return (random.random(), gaussian, np.random.standard_normal(), np.random.rand(), float(torch.randn(())))


def test_random_states_survive_a_safe_round_trip(tmp_path: Path) -> None:
    draw()
    write_torch(tmp_path / "rng.pt", rng_state())
    expected = [draw() for _ in range(3)]
    restore_rng_state(load_safely(tmp_path / "rng.pt"))
    assert [draw() for _ in range(3)] == expected


def test_inspection_shows_steps_parameters_and_mup(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_checkpoints.main([str(checkpoints)]) == 0
    out = capsys.readouterr().out
    assert "step 3: 81 parameters" in out
    assert "0.weight" in out and "8 x 8" in out and "float32" in out
    assert "lr_mult.hidden" in out and "consumed_samples: 12" in out and "base.yml" in out
    weight = load_safely(checkpoints / "global_step3" / "mp_rank_00_model_states.pt")["module"]["0.weight"]
    assert f"{weight.mean():.3e}" in out and f"{weight.std(correction=0):.3e}" in out
    assert inspect_checkpoints.main([str(checkpoints / "global_step1"), "--no-statistics"]) == 0
    out = capsys.readouterr().out
    assert "step 1: 81 parameters" in out and f"{weight.mean():.3e}" not in out


def test_inspection_shows_single_entries(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_checkpoints.main([str(checkpoints), "--attributes", "consumed_samples", "mup/lr_mult/hidden"]) == 0
    out = capsys.readouterr().out
    assert "consumed_samples: 12" in out and "mup/lr_mult/hidden: " in out and "0.weight" not in out
    with pytest.raises(CheckpointError, match="--attributes: mup/absent: there is no 'absent'; there are "):
        inspect_checkpoints.main([str(checkpoints), "--attributes", "mup/absent"])


def test_inspection_compares_two_checkpoints(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = (checkpoints / f"global_step{step}" for step in (1, 3))
    assert inspect_checkpoints.main([f"{last},{last}", "--compare"]) == 0
    assert "0.weight" in capsys.readouterr().out
    before, after = (load_safely(path / "mp_rank_00_model_states.pt")["module"]["0.weight"] for path in (first, last))
    same = bool(torch.equal(before, after))
    assert inspect_checkpoints.main([f"{first},{last}", "--compare", "--diff"]) == int(not same)
    out = capsys.readouterr().out
    assert ("0.weight" in out) != same
    if not same:
        assert f"{(before.double() - after.double()).abs().max():.3e}" in out
    with pytest.raises(CheckpointError, match="--compare: expected two directories with a comma"):
        inspect_checkpoints.main([str(first), "--compare"])


def test_inspection_of_damage(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoints / "global_step3" / "rng_rank_00.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert inspect_checkpoints.main([str(checkpoints)]) == 1
    out = capsys.readouterr().out
    assert str(path) in out and "step 2: 81 parameters" in out  # the newest intact step is shown
    assert inspect_checkpoints.main([str(checkpoints), "--iteration", "2"]) == 0
    assert inspect_checkpoints.main([str(checkpoints), "--iteration", "3"]) == 1
    with pytest.raises(CheckpointError, match="no checkpoint of step 9"):
        inspect_checkpoints.main([str(checkpoints), "--iteration", "9"])


def test_inspection_as_a_script(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "tools" / "ckpts" / "inspect_checkpoints.py"
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "holds no checkpoint" in done.stderr and "Traceback" not in done.stderr
