"""wandb (offline, read back from its file) and TensorBoard, with the real packages."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb

from megatron.errors import ConfigError
from megatron.monitoring import build_monitors
from megatron.monitoring.trackers import WandbMonitor, has_login

ROOT = Path(__file__).resolve().parents[2]
HOST = "https://api.wandb.ai"


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def offline_records(path):
    """Records of a wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, payload = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def test_without_a_login_wandb_runs_offline_and_records_config_and_steps(tmp_path, logged_out):
    with build_monitors(
        log_dir=tmp_path,
        wandb={"project": "p", "group": "g", "run_name": "n"},
        console=False,
    ) as group:
        group.start({"config": {"hidden_size": 64}, "model": {"parameters": 10}})
        group.log({"step": 5, "train/loss": 2.5, "valid/loss": None})
        group.log({"step": 10, "train/loss": 2.25})
    wandb.teardown()  # as at the end of a process: until then, wandb's service writes the file in the background
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    config, history, run, exit_code = {}, [], None, None
    for record in offline_records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            case "history":
                items = record.history.item
                history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
            case "exit":
                exit_code = record.exit.exit_code
    assert config["config"] == {"hidden_size": 64} and config["model"] == {"parameters": 10}
    assert (run.project, run.run_group, run.display_name, exit_code) == ("p", "g", "n", 0)
    assert [(row["_step"], row["train/loss"]) for row in history] == [(5, 2.5), (10, 2.25)]
    assert all("valid/loss" not in row for row in history)


KILLED = """
import os, sys, time
from pathlib import Path
from megatron.monitoring.trackers import WandbMonitor
monitor = WandbMonitor(log_dir=Path(sys.argv[1]), project="p", mode="offline", run_id=sys.argv[2])
monitor.start({})
for step in range(1, 401):
    monitor.log({"step": step, "train/loss": 1 / step})
print("logged", flush=True)
time.sleep(600)
"""


def test_a_killed_run_can_be_read_and_keeps_its_id_on_resume(tmp_path, logged_out):
    """wandb completes a step when the next one starts, so the last step of a killed run is missing."""
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), "a1"], stdout=subprocess.PIPE, cwd=ROOT)
    assert killed.stdout.readline() == b"logged\n"
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and steps_in(path) != list(range(1, 400)):
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    assert steps_in(path) == list(range(1, 400))
    resumed = WandbMonitor(log_dir=tmp_path / "resumed", project="p", mode="offline", run_id="a1")
    (tmp_path / "resumed").mkdir()
    resumed.start({})
    resumed.log({"step": 401, "train/loss": 0.5})
    resumed.close()
    wandb.teardown()
    [second] = tmp_path.glob("resumed/wandb/offline-run-*/*.wandb")
    ids = {record.run.run_id for file in (path, second) for record in offline_records(file) if record.HasField("run")}
    assert ids == {"a1"}


def steps_in(path):
    records = (record for record in offline_records(path) if record.HasField("history"))
    return [
        json.loads(item.value_json)
        for record in records
        for item in record.history.item
        if "_step" in (item.key, *item.nested_key)
    ]


def test_login_is_found_in_environment_and_netrc(tmp_path, logged_out, monkeypatch):
    assert not has_login(HOST)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_login(HOST) and not has_login("https://wandb.example.org")
    (tmp_path / ".netrc").write_text("this is { not a netrc")
    assert not has_login(HOST)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_login(HOST)


@pytest.mark.parametrize(
    ("argument", "environment", "key", "expected"),
    [
        (None, None, None, "offline"),
        (None, None, "key", "online"),
        (None, "disabled", "key", "disabled"),
        ("offline", "online", "key", "offline"),
    ],
)
def test_mode(tmp_path, logged_out, monkeypatch, argument, environment, key, expected):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert WandbMonitor(log_dir=tmp_path, project="p", mode=argument)._mode == expected


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("wandb", {"wandb": {"project": "p"}}, "wandb"),
        ("tensorboard", {"tensorboard_dir": "tb"}, "tensorboard"),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_extra(tmp_path, monkeypatch, package, options, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install -e \.\[{extra}\]"):
        build_monitors(log_dir=tmp_path, **options)


def test_tensorboard_reads_back_and_a_resume_purges_later_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step, steps in ((None, (5, 10, 15)), (10, (15, 20))):
        options = {"tensorboard_dir": tmp_path / "tb", "resume_step": resume_step, "console": False}
        with build_monitors(log_dir=tmp_path, **options) as group:
            group.start({"config": {"hidden_size": 64}})
            for step in steps:
                group.log({"step": step, "train/loss": step / 4 + (resume_step or 0), "valid/loss": None})
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    rows = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert rows == [(5, 1.25), (10, 2.5), (15, 13.75), (20, 15.0)]
    assert "config/text_summary" in events.Tags()["tensors"]
