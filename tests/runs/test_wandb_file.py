"""Tests of reading wandb's offline files: files of the real wandb, truncated, damaged and unusual ones."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2 as pb

from megatron.errors import DataError
from muneox.runs import items, wandb_file
from muneox.runs.leveldb import read_records
from muneox.runs.wandb_file import read_wandb_file
from tests.runs import wandb_files as files

REAL = """
import sys, time, wandb
settings = wandb.Settings(console="off", silent=True)
run = wandb.init(project="p", group="g", name="ladder-1", tags=["a", "b"], dir=sys.argv[1], mode="offline",
                 config={"model": {"params": 10}, "hidden_size": 64}, settings=settings)
for step in range(1, int(sys.argv[2]) + 1):
    run.log({"train/loss": 8 / step, "nested": {"x": step}, "words": "no number", "flag": True}, step=step)
    print(step, flush=True)
if sys.argv[3] == "finish":
    run.log({"valid/loss": float("nan"), "up": float("inf")}, step=step + 1)
    run.config.update({"late": 5})
    run.summary["best"] = 0.5
    run.finish(exit_code=int(sys.argv[4]))
else:
    time.sleep(600)
"""


def environment(tmp_path):
    names = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {**names, "HOME": str(tmp_path), "PYTHONPATH": ""}


def write(path, payloads):
    data, ends = files.log_of([p if isinstance(p, bytes) else p.SerializeToString() for p in payloads])
    path.write_bytes(data)
    return data, ends


def values(run):
    return {name: dict(zip(one.steps.tolist(), one.values.tolist())) for name, one in run.series.items()}


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-c", REAL, str(folder), "3", "finish", "0"]
    subprocess.run(command, env=environment(folder), check=True, capture_output=True, timeout=120)
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    return path


def test_a_file_of_the_real_wandb_is_read(real_run):
    run = read_wandb_file(real_run)
    assert (run.name, run.group, run.tags, run.state) == ("ladder-1", "g", ("a", "b"), "finished")
    assert run.config == {"model": {"params": 10}, "hidden_size": 64, "late": 5}
    assert run.number("params") == 10 and run.number("hidden-size") == 64
    found = values(run)
    assert found["train/loss"] == {1: 8.0, 2: 4.0, 3: 8 / 3}
    assert found["nested.x"] == {1: 1.0, 2: 2.0, 3: 3.0} and found["flag"] == {1: 1.0, 2: 1.0, 3: 1.0}
    assert math.isnan(found["valid/loss"][4]) and found["up"] == {4: math.inf}
    assert "words" not in found
    assert run.summary["best"] == 0.5 and run.summary["words"] == "no number" and run.summary["nested.x"] == 3
    assert run.warnings == ()


def test_our_field_numbers_are_those_of_the_installed_wandb():
    def numbers(message, *names):
        return tuple(message.DESCRIPTOR.fields_by_name[name].number for name in names)

    ours = wandb_file
    assert numbers(pb.Record, "history", "summary", "config", "run", "exit") == (
        ours.HISTORY,
        ours.SUMMARY,
        ours.CONFIG,
        ours.RUN,
        ours.EXIT,
    )
    fields = ("run_id", "config", "summary", "run_group", "display_name", "tags")
    assert numbers(pb.RunRecord, *fields) == (
        ours.RUN_ID,
        ours.RUN_CONFIG,
        ours.RUN_SUMMARY,
        ours.RUN_GROUP,
        ours.RUN_NAME,
        ours.RUN_TAG,
    )
    typed = ("key", "nested_key", "boolean", "integer", "number", "text", "json", "value_json")
    known = set(pb.HistoryItem.DESCRIPTOR.fields_by_name)  # older versions have no typed fields
    for name in known & set(typed):
        assert numbers(pb.HistoryItem, name) == (getattr(items, name.upper()),)
    for message in (pb.ConfigRecord, pb.SummaryRecord):
        assert numbers(message, "update", "remove") == (ours.UPDATE, ours.REMOVE)
    assert numbers(pb.HistoryRecord, "item") == (ours.ITEM,) and numbers(pb.RunExitRecord, "exit_code") == (
        ours.EXIT_CODE,
    )


def test_a_run_killed_while_logging_is_read_up_to_its_last_whole_record(tmp_path):
    command = [sys.executable, "-c", REAL, str(tmp_path), "3000", "wait"]
    with subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        path, deadline = None, time.monotonic() + 120
        while time.monotonic() < deadline:  # until wandb's service has written some records to disk
            path = next(iter(tmp_path.glob("wandb/offline-run-*/run-*.wandb")), None)
            if path and path.stat().st_size > 40_000:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)  # the process and wandb's service
    data = path.read_bytes()
    path = tmp_path / "run-as-it-was.wandb"  # a service that survives the kill can still write to the original
    path.write_bytes(data)
    expected = {}
    for record in files.reference_records(data):
        metrics = {tuple(item.nested_key): item.value_json for item in record.history.item}
        if ("train/loss",) in metrics:
            expected[int(metrics["_step",])] = float(metrics["train/loss",])
    assert len(expected) > 10
    run = read_wandb_file(path)
    assert values(run)["train/loss"] == expected
    assert run.config["hidden_size"] == 64 and run.state == "running"
    os.utime(path, (0, 0))
    assert read_wandb_file(path).state == "crashed"


def small_file(steps=5):
    records = [files.run_record({"hidden_size": "64"}, display_name="n", tags=["t"])]
    records += [files.history(step, {"loss": repr(4 / step), ("a", "b"): str(step)}) for step in range(1, steps + 1)]
    return [*records, files.exit_record()]


def test_a_file_cut_at_any_byte_yields_the_records_before_the_cut(tmp_path):
    path = tmp_path / "run-abc.wandb"
    data, ends = write(path, small_file())
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        run = read_wandb_file(path)
        whole = sum(end <= cut for end in ends)
        assert values(run).get("loss", {}) == {step: 4 / step for step in range(1, min(whole, 6))}
        assert run.config == ({"hidden_size": 64} if whole else {})
        at_a_border = cut in (7, *ends)
        assert at_a_border == (run.warnings == ())
        if not at_a_border:
            begins = max([0 if cut < 7 else 7, *(end for end in ends if end <= cut)])
            assert f"byte {begins}" in run.warnings[0] and str(path) in run.warnings[0]


@settings(max_examples=150)
@given(st.data())
def test_any_changed_byte_leaves_a_prefix_and_a_warning(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "run-x.wandb"
    whole, ends = write(path, small_file())
    place = data.draw(st.integers(7, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    run = read_wandb_file(path)
    before = sum(end <= place for end in ends)
    assert values(run).get("loss", {}) == {step: 4 / step for step in range(1, min(before, 6))}
    begins = max([7, *(end for end in ends if end <= place)])
    assert f"byte {begins};" in run.warnings[0]


def test_records_across_blocks_are_read_and_only_cut_ones_are_lost(tmp_path):
    path = tmp_path / "run-big.wandb"
    names = [f"layers.{i}.norm" for i in range(700)]
    records = [
        files.history(step, {"loss": str(step), **{name: repr(i / step) for i, name in enumerate(names)}})
        for step in range(1, 8)
    ]
    data, ends = write(path, records)
    assert len(data) > 4 * 32768
    run = read_wandb_file(path)
    assert values(run)["loss"] == {step: float(step) for step in range(1, 8)}
    assert all(values(run)[name] == {s: i / s for s in range(1, 8)} for i, name in enumerate(names))
    for cut in [*range(32700, 32900), *range(ends[3] - 40, ends[3] + 40), *range(65500, 65600)]:
        kept = read_records(data[:cut])
        assert len(kept.starts) == sum(end <= cut for end in ends)
    path.write_bytes(data[: ends[3]] + bytes(5000))
    run = read_wandb_file(path)
    assert len(run.series["loss"]) == 4 and "zeros" in run.warnings[0] and f"byte {ends[3]};" in run.warnings[0]


names = st.one_of(
    st.sampled_from(["loss", "lr", "\x82\x01\n\x12", "train/loss"]),
    st.text(max_size=90),
    st.tuples(st.text(max_size=5), st.text(max_size=5)),
)
numbers = st.floats(allow_nan=False) | st.integers(-(2**62), 2**62)


@settings(max_examples=60)
@given(st.lists(st.dictionaries(names, numbers, max_size=6), max_size=8), st.integers(0, 40000))
def test_any_metrics_are_read_back(tmp_path_factory, steps, padding):
    path = tmp_path_factory.mktemp("any") / "run-x.wandb"
    records, expected = [pb.Record(num=1, output=pb.OutputRecord(line="x" * padding))], {}
    for step, metrics in enumerate(steps):
        joined = {".".join([name] if isinstance(name, str) else name): v for name, v in metrics.items()}
        if len(joined) < len(metrics) or any(name.startswith("_step") for name in joined):
            continue
        records.append(files.history(step, {name: json.dumps(value) for name, value in metrics.items()}))
        for name, value in joined.items():
            expected.setdefault(name, {})[step] = float(value)
    write(path, records)
    run = read_wandb_file(path)
    assert values(run) == expected and run.warnings == ()


def test_typed_values_and_other_forms_of_items_are_read(tmp_path):
    record = pb.Record(num=1)
    record.history.item.add(nested_key=["_step"], value_json="7")
    record.history.item.add(key="old", value_json="1.5")
    record.history.item.add(nested_key=["quoted"], value_json='"NaN"')
    record.history.item.add(nested_key=["picture"], value_json='{"_type": "image-file"}')
    record.history.item.add(nested_key=["nothing"], value_json="null")
    record.history.item.add(nested_key=["half"], value_json="0.5")
    typed = {"d": b"\x31" + struct.pack("<d", 0.1), "i": b"\x28\x05", "b": b"\x20\x01"}
    for name, field in typed.items():  # fields 6, 5 (zigzag) and 4, which older versions of wandb lack
        item = b"\x12\x01" + name.encode() + field
        record.history.MergeFromString(b"\x0a" + bytes([len(item)]) + item)
    path = tmp_path / "run-x.wandb"
    write(path, [record])
    found = values(read_wandb_file(path))
    assert math.isnan(found.pop("quoted")[7])
    assert found == {"old": {7: 1.5}, "half": {7: 0.5}, "d": {7: 0.1}, "i": {7: -3.0}, "b": {7: 1.0}}


def test_the_summary_keeps_the_last_update_and_applies_removals(tmp_path):
    records = [pb.Record(num=i) for i in range(4)]
    records[0].summary.update.add(nested_key=["a"], value_json="1")
    records[0].summary.update.add(nested_key=["b"], value_json="2")
    records[1].summary.update.add(key="a", value_json="3")
    records[2].summary.remove.add(nested_key=["b"])
    records[3].config.update.add(key="c", value_json="{not json")
    path = tmp_path / "run-x.wandb"
    write(path, records)
    run = read_wandb_file(path)
    assert run.summary == {"a": 3} and run.config == {"c": "{not json"}


@pytest.mark.parametrize("bad", [b"\xff\xff\xff", b"\x12\x7f\x0a\x05", b"\x12\x04\x0a\x02\x12\x09", b"\x0f\x00"])
def test_reading_stops_at_a_malformed_record(tmp_path, bad):
    path = tmp_path / "run-x.wandb"
    records = small_file()
    _, ends = write(path, [*records[:3], bad, *records[3:]])
    run = read_wandb_file(path)
    assert values(run)["loss"] == {1: 4.0, 2: 2.0} and f"byte {ends[2]};" in run.warnings[0]


@pytest.mark.parametrize("code, state", [(0, "finished"), (1, "crashed"), (255, "crashed")])
def test_the_exit_code_determines_the_state(tmp_path, code, state):
    path = tmp_path / "run-x.wandb"
    write(path, [files.history(1, {"loss": "1"}), files.exit_record(code)])
    assert read_wandb_file(path).state == state


def test_another_file_is_rejected_by_name(tmp_path):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"something else entirely")
    with pytest.raises(DataError, match=r"run-x\.wandb.*not a wandb file"):
        read_wandb_file(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_wandb_file(tmp_path / "none.wandb")


def test_names_with_the_same_short_digest_are_distinguished():
    words = [f"metric/{i}".encode() for i in range(3000)] * 2  # enough for collisions of 16-bit digests
    buffer = b"".join(words) + bytes(16)
    stop = np.cumsum([len(word) for word in words])
    start = stop - [len(word) for word in words]
    groups = items._alike(np.frombuffer(buffer, np.uint8), start, stop, np.arange(len(words)))
    assert sorted(group.tolist() for group in groups) == [[i, i + 3000] for i in range(3000)]
