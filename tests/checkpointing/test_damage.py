"""Damaged files are named and their step is skipped; files with code never run."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.checkpointing import find_intact, load_weights, verify
from megatron.checkpointing.integrity import FileRecord, load_safely, write_manifest, write_torch
from megatron.checkpointing.load import load_checkpoint
from megatron.errors import CheckpointError
from tests.checkpointing import harness

FILES = [
    "manifest.json",
    "configs/base.yml",
    "mp_rank_00_model_states.pt",
    "rng_rank_00.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x10
    path.write_bytes(content)


def test_layout(checkpoints: Path) -> None:
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "global_step1",
        "global_step2",
        "global_step3",
        "latest",
    ]
    assert (checkpoints / "latest").read_text() == "global_step3"
    step = checkpoints / "global_step3"
    assert sorted(p.relative_to(step).as_posix() for p in step.rglob("*") if p.is_file()) == sorted(FILES)
    assert verify(checkpoints) == verify(step) == []


@pytest.mark.parametrize("harm", ["truncated", "flipped", "emptied", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_named_and_the_step_is_skipped(
    checkpoints: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoints / "global_step3" / name
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "flipped":
        flip(path, path.stat().st_size // 2)
    elif harm == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert any(str(path) in problem for problem in verify(checkpoints))
    with caplog.at_level(logging.WARNING):
        assert find_intact(checkpoints) == checkpoints / "global_step2"
    assert str(path) in caplog.text
    with pytest.raises(CheckpointError, match=name):  # a step requested by number has no fallback
        load_weights(checkpoints, 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), position=st.integers(0, 10**6))
def test_any_flipped_byte_is_found(checkpoints: Path, name: str, position: int) -> None:
    path = checkpoints / "global_step3" / name
    flip(path, position)
    assert verify(path.parents[0] if path.parent.name == "global_step3" else path.parents[1])
    flip(path, position)
    assert verify(checkpoints) == []


def test_resume_from_the_fallback_is_exact(one_process: None, checkpoints: Path) -> None:
    engines = [harness.build_engine(1, seed=seed) for seed in (5, 6)]
    load_checkpoint(engines[0], checkpoints, iteration=2)
    expected = harness.train(engines[0], 2, 4)
    flip(checkpoints / "global_step3" / FILES[-1], 100)
    loaded = load_checkpoint(engines[1], checkpoints)
    assert loaded is not None and loaded.iteration == 2
    assert harness.train(engines[1], 2, 4) == expected


def test_without_an_intact_step_the_error_names_every_step(checkpoints: Path) -> None:
    for step in (1, 2, 3):
        flip(checkpoints / f"global_step{step}" / FILES[2], 50)
    with pytest.raises(CheckpointError) as caught:
        find_intact(checkpoints)
    for step in (1, 2, 3):
        assert str(checkpoints / f"global_step{step}" / FILES[2]) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"global_step9", b"\xff\xfe", b"../elsewhere", None])
def test_a_bad_latest_gives_the_newest_intact_step(
    checkpoints: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    latest = checkpoints / "latest"
    latest.unlink() if content is None else latest.write_bytes(content)
    assert find_intact(checkpoints) == checkpoints / "global_step3"
    assert str(latest) in caplog.text
    assert any(str(latest) in problem for problem in verify(checkpoints))


def test_latest_wins_over_newer_steps(checkpoints: Path) -> None:
    (checkpoints / "latest").write_text("global_step2\n")
    assert find_intact(checkpoints) == checkpoints / "global_step2"


def test_damage_never_leads_past_latest(checkpoints: Path) -> None:
    """Step 3 is of a branch that was left: the run was wound back to 2, which is damaged."""
    (checkpoints / "latest").write_text("global_step2")
    flip(checkpoints / "global_step2" / FILES[2], 50)
    assert find_intact(checkpoints) == checkpoints / "global_step1"
    flip(checkpoints / "global_step1" / FILES[2], 50)
    with pytest.raises(CheckpointError, match=r"latest names step 2: 3\. Set iteration"):
        find_intact(checkpoints)
    assert find_intact(checkpoints, 3) == checkpoints / "global_step3"


def test_a_lost_latest_step_never_leads_past_it(checkpoints: Path) -> None:
    (checkpoints / "latest").write_text("global_step2")
    shutil.rmtree(checkpoints / "global_step2")
    assert find_intact(checkpoints) == checkpoints / "global_step1"
    shutil.rmtree(checkpoints / "global_step1")
    with pytest.raises(CheckpointError, match="no checkpoint up to step 2"):
        find_intact(checkpoints)


def test_latest_without_any_step_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step5")
    with pytest.raises(CheckpointError, match="latest exists, but there is no checkpoint"):
        find_intact(tmp_path)


def test_a_renamed_step_is_refused(checkpoints: Path) -> None:
    shutil.copytree(checkpoints / "global_step1", checkpoints / "global_step9")
    assert "belongs to step 1" in verify(checkpoints / "global_step9")[0]


def test_a_file_that_is_not_in_the_manifest_is_refused(checkpoints: Path) -> None:
    step = checkpoints / "global_step3"
    shutil.copy(step / FILES[2], step / "mp_rank_01_model_states.pt")
    assert verify(step) == [f"{step / 'mp_rank_01_model_states.pt'}: not in the manifest"]


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def plant(step: Path, name: str, marker: Path, *, legacy: bool) -> None:
    """Replace `name` by a file that runs code, and record its hash in the manifest."""
    import hashlib

    path = step / name
    if legacy:
        path.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save({"module": {}, "client_state": {}, "x": Malicious(marker)}, path)
    manifest = json.loads((step / "manifest.json").read_text())
    records = {file: FileRecord(**entry) for file, entry in manifest["files"].items()}
    content = path.read_bytes()
    records[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    write_manifest(step, manifest["iteration"], records)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", FILES[2:])
def test_malicious_files_run_no_code(
    engine: Any, checkpoints: Path, tmp_path: Path, name: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "executed"
    for step in (1, 2, 3):
        plant(checkpoints / f"global_step{step}", name, marker, legacy=legacy)
    assert verify(checkpoints)
    for load in (lambda: load_weights(checkpoints), lambda: load_checkpoint(engine, checkpoints)):
        with pytest.raises(CheckpointError, match=name):
            load()
    # Without the verification, each reader still refuses the file.
    monkeypatch.setattr("megatron.checkpointing.load.verify_share", lambda *_: [])
    fresh = harness.build_engine(1)
    with pytest.raises(CheckpointError):
        load_checkpoint(fresh, checkpoints)
    with pytest.raises(CheckpointError, match=name):
        load_safely(checkpoints / "global_step3" / name, deepspeed_classes=True)
    assert not marker.exists()
    torch.load(checkpoints / "global_step3" / name, weights_only=False) if not legacy else None
    assert legacy or marker.exists()  # the file was dangerous


def test_saving_refuses_a_state_that_could_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tests.checkpointing.test_damage.Malicious|system"):
        write_torch(tmp_path / "x.pt", {"schedule": Malicious(tmp_path)})


def test_the_classes_in_deepspeed_shards_load(tmp_path: Path, one_process: None) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(
        init_scale=2**8, scale_window=7, min_scale=1, delayed_shift=1, consecutive_hysteresis=False,
        raise_error_at_min_scale=True, dtype=torch.float16,
    )  # fmt: skip
    state = [scaler, LossScaler(2.0), ZeroStageEnum.gradients, fragment_address(numel=3, start=1)]
    write_torch(tmp_path / "x.pt", state)
    back = load_safely(tmp_path / "x.pt", deepspeed_classes=True)
    assert back[0].__dict__ == scaler.__dict__ and back[2:] == state[2:]
    with pytest.raises(CheckpointError, match="x.pt"):
        load_safely(tmp_path / "x.pt")
