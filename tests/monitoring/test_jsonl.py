"""metrics.jsonl: valid JSON for any numbers, and one record per step after crashes and resumes."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import DataError
from megatron.monitoring import JsonlMonitor, MonitorGroup, build_monitors, read_metrics

HEADER = {"config": {"lr": 1e-3, "hidden_size": 64}, "model": {"parameters": 1000}}


def write(path, steps, resume_step=None, header=HEADER, **values):
    monitor = JsonlMonitor(path, resume_step)
    monitor.start(header)
    for step in steps:
        monitor.log({"step": step, "tokens": step * 512, "train/loss": 1.0 / (step + 1)} | values)
    monitor.close()


def steps_of(path):
    return [record["step"] for record in read_metrics(path)[1]]


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name != "step" and not name.endswith("_nonfinite")
)
numbers = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats()


@given(st.lists(st.dictionaries(names, numbers), max_size=4))
def test_records_are_read_back_unchanged(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    records = [{"step": step, **record} for step, record in enumerate(records)]
    monitor = JsonlMonitor(path)
    monitor.start(HEADER)
    for record in records:
        monitor.log(record)
    monitor.close()
    header, back = read_metrics(path)
    assert header == HEADER
    assert repr(back) == repr(records)  # repr, because nan is not equal to itself


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_stay_valid_json(tmp_path, value):
    write(tmp_path / "m.jsonl", [1], grad_norm=value)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / "m.jsonl").read_text().splitlines()[1]
    record = json.loads(line, parse_constant=refuse)
    assert record["grad_norm"] is None and record["grad_norm_nonfinite"] == str(value)
    assert str(read_metrics(tmp_path / "m.jsonl")[1][0]["grad_norm"]) == str(value)


def test_header_of_any_python_values_is_json(tmp_path):
    write(tmp_path / "m.jsonl", [], header={"config": {"path": tmp_path, "x": math.inf, "betas": (0.9, 0.95)}})
    header, _ = read_metrics(tmp_path / "m.jsonl")
    assert header == {"config": {"path": str(tmp_path), "x": "inf", "betas": [0.9, 0.95]}}


def test_each_line_is_readable_as_soon_as_it_is_logged(tmp_path):
    path = tmp_path / "m.jsonl"
    monitor = JsonlMonitor(path)
    monitor.start(HEADER)
    for step in range(3):
        monitor.log({"step": step})
        assert steps_of(path)[-1] == step
    monitor.close()


def test_kill_9_loses_no_logged_line(tmp_path):
    path = tmp_path / "m.jsonl"
    script = (
        "import sys; from pathlib import Path; from megatron.monitoring import JsonlMonitor\n"
        "monitor = JsonlMonitor(Path(sys.argv[1])); monitor.start({})\n"
        "for step in range(10**9):\n"
        "    monitor.log({'step': step})\n"
        "    if step == 50: print('ready', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    steps = steps_of(path)
    assert len(steps) > 50 and steps == list(range(len(steps)))


@given(st.integers(0, 10_000))
def test_a_truncated_file_reads_up_to_the_last_whole_line_and_resumes(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("run") / "m.jsonl"
    write(path, range(5))
    whole = path.read_bytes()
    content = whole[: cut % (len(whole) + 1)]
    path.write_bytes(content)
    if content.count(b"\n"):
        assert steps_of(path) == list(range(content.count(b"\n") - 1))
    else:
        with pytest.raises(DataError, match="header"):
            read_metrics(path)
    write(path, range(3, 7), resume_step=2)
    kept = min(max(content.count(b"\n") - 1, 0), 3)
    assert steps_of(path) == [*range(kept), 3, 4, 5, 6]


def test_a_resume_drops_later_records_and_keeps_the_others(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, range(10), **{"valid/loss": math.nan})
    write(path, range(6, 12), resume_step=5, header=HEADER | {"note": "second"})
    header, records = read_metrics(path)
    assert [record["step"] for record in records] == list(range(12))
    assert math.isnan(records[5]["valid/loss"]) and "valid/loss" not in records[6]
    assert header == HEADER | {"note": "second", "resumed_from": [5]}
    write(path, [], resume_step=8)
    assert steps_of(path) == list(range(9)) and read_metrics(path)[0]["resumed_from"] == [5, 8]


def test_two_lines_of_one_step_are_one_record_when_read_and_after_a_resume(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [1, 2])
    lines = path.read_bytes()
    path.write_bytes(
        lines + b'{"step": 2, "test/loss": null, "test/loss_nonfinite": "nan"}\n{"step": 2, "test/loss": 3.0}\n'
    )
    expected = [{"step": 1, "tokens": 512, "train/loss": 1 / 2}]
    expected.append({"step": 2, "tokens": 1024, "train/loss": 1 / 3, "test/loss": 3.0})
    assert read_metrics(path)[1] == expected
    write(path, [], resume_step=2)
    assert read_metrics(path)[1] == expected and path.read_bytes().count(b"\n") == 3


def test_a_resume_that_dies_while_rewriting_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    write(path, range(10))
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DataError, match="m.jsonl cannot be written.*No space"):
        JsonlMonitor(path, 3).start(HEADER)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.jsonl"]


def test_a_new_run_in_a_used_directory_renames_the_old_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for last in (3, 5, 7):
        write(path, range(last))
    assert steps_of(path) == list(range(7))
    assert steps_of(tmp_path / "metrics.1.jsonl") == list(range(3))
    assert steps_of(tmp_path / "metrics.2.jsonl") == list(range(5))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", "header"),
        (b'{"config": 1}', "header"),
        (b"{}\nnot json\n{}\n", "line 2"),
        (b"{}\n[1]\n", "line 2"),
        (b'{}\n{"step": 1}\n{"loss": 1.0}\n', "line 3"),
        (b'{}\n{"step": 1, "x": "\xff"}\n', "line 2"),
    ],
)
def test_other_files_are_refused_with_name_and_line(tmp_path, content, names):
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"m\.jsonl.*{names}"):
        read_metrics(path)
    with pytest.raises(DataError, match="nowhere"):
        read_metrics(tmp_path / "nowhere.jsonl")


def test_a_record_without_a_step_is_refused(tmp_path):
    monitor = JsonlMonitor(tmp_path / "m.jsonl")
    monitor.start(HEADER)
    with pytest.raises(ValueError, match="step"):
        monitor.log({"train/loss": 1.0})
    monitor.close()


def test_a_file_that_cannot_be_written_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    monitor = JsonlMonitor(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(DataError, match=r"file/metrics.jsonl cannot be written"), MonitorGroup([monitor]) as group:
        group.start({})


def test_records_are_kept_while_the_disk_is_full(tmp_path, caplog):
    """A limit on the size of files stands for the full disk: it cuts a line in two."""
    path = tmp_path / "metrics.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with build_monitors(log_dir=tmp_path, console=False) as group:
            group.start({"name": "x"})
            group.log({"step": 1, "loss": 0.5})
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, limits[1]))
            group.log({"step": 2, "loss": 0.25})
            group.log({"step": 3, "loss": 0.125})
            assert [record["step"] for record in read_metrics(path)[1]] == [1]
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            group.log({"step": 4, "loss": 0.0625})
            expected = [{"step": step, "loss": 2.0**-step} for step in (1, 2, 3, 4)]
            assert read_metrics(path)[1] == expected
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
            group.log({"step": 5, "loss": 2.0**-5})
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_metrics(path)[1] == [*expected, {"step": 5, "loss": 2.0**-5}]  # written when it was closed
    assert sum("JsonlMonitor" in message for message in caplog.messages) == 1


def test_two_lines_of_a_step_that_disagree_about_a_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{}\n{"step": 1, "lr_nonfinite": "text"}\n{"step": 1, "lr": null}\n')
    assert read_metrics(path)[1] == [{"step": 1, "lr": None}]
