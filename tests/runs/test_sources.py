"""Tests of the sources that a user can name, of the filters, and that every source yields the same run."""

from __future__ import annotations

import math
import os
import sys
import types

import pytest

from megatron.errors import DataError
from megatron.monitoring import build_monitors
from muneox.runs import read_runs
from muneox.runs.files import read_csv, read_jsonl, read_tensorboard
from muneox.scaling.ladder import Selection, read_points
from tests.runs.wandb_files import history, log_of, run_record

RECORDS = [
    {"step": 10, "tokens": 320, "train/loss": 3.0, "lr": 0.001},
    {"step": 20, "tokens": 640, "train/loss": None, "train/loss_nonfinite": "nan", "valid/loss": 2.5},
]


def table(run):
    """The series of a run in comparable form: without wandb's own, and with text for NaN."""
    return {
        name: [(int(s), "nan" if math.isnan(v) else round(v, 6)) for s, v in zip(one.steps, one.values)]
        for name, one in run.series.items()
        if not name.startswith("_") and name != "step"
    }


def test_a_jsonl_yields_header_series_and_state(write_jsonl):
    run = read_jsonl(write_jsonl("w64-s1", RECORDS))
    assert (run.name, run.state, run.group) == ("w64-s1", "finished", "g")
    assert run.number("params") == 1000 and run.number("train-batch-size") == 4 and run.number("lr") == 0.001
    assert run.value("use_mup") is True and run.number("use_mup") is None
    assert table(run)["train/loss"] == [(10, 3.0), (20, "nan")]
    assert run.summary["valid/loss"] == 2.5 and run.warnings == ()


def test_an_incomplete_line_is_left_out_with_a_warning(write_jsonl):
    path = write_jsonl("w", RECORDS, end='\n{"step": 30, "tra')
    run = read_jsonl(path)
    assert run.series["tokens"].steps.tolist() == [10, 20] and str(path) in run.warnings[0]
    path = write_jsonl("short", RECORDS[:1])
    assert read_jsonl(path).state == "running"
    os.utime(path, (0, 0))
    assert read_jsonl(path).state == "unknown"


def test_all_our_trackers_yield_the_same_run(tmp_path, monkeypatch, header):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    log_dir = tmp_path / "run-1"
    with build_monitors(
        log_dir=log_dir,
        wandb={"project": "p", "group": "g"},
        tensorboard_dir=log_dir / "tb",
        console=False,
    ) as group:
        group.start(header)
        group.log({"step": 10, "tokens": 320, "train/loss": 3.0})
        group.log({"step": 20, "tokens": 640, "train/loss": math.nan, "valid/loss": 2.5})
    import wandb

    wandb.teardown()
    [jsonl] = read_runs([str(log_dir)])  # one run, not three
    assert jsonl.source.endswith("metrics.jsonl")
    [offline] = read_runs([str(log_dir / "wandb")])
    [tensorboard] = read_runs([str(log_dir / "tb")])
    assert table(jsonl) == table(offline) == table(tensorboard)
    for run in (jsonl, offline, tensorboard):
        assert [run.number(name) for name in ("params", "hidden_size", "seq_length", "lr")] == [1000, 64, 8, 0.001]
        assert run.value("use_mup") is True
    assert offline.group == jsonl.group == "g" and offline.state == "finished"


def test_folders_and_globs_are_searched_and_repetitions_read_once(write_jsonl, tmp_path):
    for name in ("a", "b", "deep/c"):
        write_jsonl(name, RECORDS)
    everything = read_runs([str(tmp_path)])
    assert [run.name for run in everything] == ["a", "b", "c"]
    again = read_runs([str(tmp_path / "a"), str(tmp_path / "*" / "metrics.jsonl"), str(tmp_path / "a/metrics.jsonl")])
    assert [run.name for run in again] == ["a", "b"]


def test_an_unreadable_run_in_a_folder_is_left_out_with_a_warning(write_jsonl, tmp_path, caplog):
    write_jsonl("a", RECORDS)
    broken = tmp_path / "b" / "metrics.jsonl"
    broken.parent.mkdir()
    broken.write_text("")
    assert [run.name for run in read_runs([str(tmp_path)])] == ["a"]
    assert str(broken) in caplog.text
    for alone in (broken, broken.parent):
        with pytest.raises(DataError, match="has no header line"):
            read_runs([str(alone)])


def test_runs_with_the_same_name_get_the_names_of_their_folders(write_jsonl, tmp_path):
    write_jsonl("x/run", RECORDS)
    write_jsonl("y/run", RECORDS, config={"wandb_run_name": "run"})
    names = [run.name for run in read_runs([str(tmp_path)])]
    assert len(set(names)) == 2 and all(name.startswith("run (") for name in names)


@pytest.mark.parametrize(
    "sources, message",
    [
        ([], "no runs are named"),
        (["{tmp}/none/metrics.jsonl"], "is not a file or folder"),
        (["{tmp}/none*"], "does not match any file or folder"),
        (["{tmp}/empty"], "has no runs: no metrics.jsonl"),
        (["{tmp}/notes.txt"], "is not a file of a run; expected"),
    ],
)
def test_a_missing_source_is_named(tmp_path, sources, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        read_runs([source.format(tmp=tmp_path) for source in sources])


def test_a_misspelt_path_below_a_folder_is_not_taken_for_a_project(write_jsonl, tmp_path, monkeypatch):
    write_jsonl("runs/a", RECORDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # reading a project would report that wandb is missing
    with pytest.raises(DataError, match="runs/b is not a file or folder, and not"):
        read_runs(["runs/b"])


def test_filters_select_runs_and_errors_list_the_values(write_jsonl, tmp_path):
    write_jsonl("a", RECORDS)
    write_jsonl("b", RECORDS, config={"hidden_size": 128, "wandb_group": "h"}, model={})
    folder = [str(tmp_path)]
    assert [run.name for run in read_runs(folder, group="h")] == ["b"]
    assert [run.name for run in read_runs(folder, where={"hidden-size": "64.0", "use_mup": "true"})] == ["a"]
    for options, message in [
        ({"group": "k"}, "no run has the group `k`; groups: g, h"),
        ({"tags": ["t"]}, "no run has the tag `t`; tags: none"),
        ({"where": {"hidden_size": "1"}}, "hidden_size = 1; values: 128, 64"),
        ({"where": {"seq_len": "1"}}, "no run has `seq_len`.*did you mean seq_length"),
        ({"group": "g", "where": {"hidden_size": "128"}}, "none of the 2 runs passes all filters"),
    ]:
        with pytest.raises(DataError, match=message):
            read_runs(folder, **options)


def test_a_resumed_run_is_one_run_and_can_be_excluded_by_its_id(tmp_path):
    """wandb writes one folder per start, with the same id. Step 3 was trained twice: the resumed part counts."""
    parts = (
        ("offline-run-20260101_000000-abc", {"lr": "0.1"}, {1: 3.0, 2: 2.5, 3: 9.0}),
        ("offline-run-20260102_000000-abc", {"lr": "0.1", "params": "7"}, {3: 2.2, 4: 2.0}),
    )
    for folder, config, losses in parts:
        records = [
            run_record(config, display_name="width 64"),
            *(history(s, {"loss": str(v)}) for s, v in losses.items()),
        ]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run-abc.wandb").write_bytes(log_of([r.SerializeToString() for r in records])[0])
    (run,) = read_runs([str(tmp_path)])
    assert table(run) == {"loss": [(1, 3.0), (2, 2.5), (3, 2.2), (4, 2.0)]}
    assert run.number("params") == 7 and run.run_id == "abc" and run.name == "width 64"
    with pytest.raises(DataError, match="no runs are left"):
        read_points([str(tmp_path)], Selection("params", "loss", exclude=("abc",)))


def test_the_csv_of_a_history_is_read(tmp_path):
    path = tmp_path / "w64.csv"
    path.write_text("\ufeffStep,train/loss,note\n1,3.5,hello\n2,,\n3,nan,\n")
    run = read_csv(path)
    assert (
        run.name == "w64"
        and table(run) == {"train/loss": [(1, 3.5), (3, "nan")], "note": []}
        or table(run) == {"train/loss": [(1, 3.5), (3, "nan")]}
    )
    path.write_text("width,loss\n1,2\n")
    with pytest.raises(DataError, match=r"w64\.csv is not the history.*width, loss"):
        read_csv(path)
    path.write_text("step,loss\nx,2\n")
    with pytest.raises(DataError, match="row 2: the step is `x`, expected a number"):
        read_csv(path)


def test_tensorboard_without_scalars_or_package_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    with pytest.raises(DataError, match="has TensorBoard events but no scalars"):
        read_tensorboard(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(DataError, match=r"pip install -e \.\[tensorboard\]"):
        read_tensorboard(tmp_path)


def test_a_truncated_event_file_is_read_up_to_the_cut(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 6):
            writer.add_scalar("loss", 1 / step, step)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert read_tensorboard(tmp_path).series["loss"].steps.tolist() == [1, 2, 3, 4]


class FakeRun:
    def __init__(self, name="n", group="g", tags=()):
        self.name, self.group, self.tags, self.state = name, group, list(tags), "failed"
        self.url, self.id = f"https://wandb.ai/e/p/runs/{name}", f"id-{name}"
        self.config, self.summary = {"params": 7, "hidden-size": 64}, {"loss": 1.0, "_wandb": {}}

    def scan_history(self, page_size):
        return [
            {"_step": 1, "loss": 2.0, "text": "x", "_timestamp": 1.0},
            {"_step": 2, "loss": "NaN", "nothing": None},
        ]


def fake_wandb(monkeypatch, runs=None, error=None):
    asked = []

    class Api:
        def runs(self, path, filters, order):
            if error:
                raise error
            asked.append((path, filters))
            return runs

        def run(self, path):
            asked.append(path)
            return runs[0]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Api=Api))
    return asked


def test_projects_on_a_server_are_read(monkeypatch):
    asked = fake_wandb(monkeypatch, [FakeRun("a", tags=["t"]), FakeRun("b", tags=["t"])])
    runs = read_runs(["entity/project"], group="g", tags=["t"])
    assert asked == [("entity/project", {"group": "g", "tags": {"$all": ["t"]}})]
    assert [run.name for run in runs] == ["a", "b"] and runs[0].state == "crashed"
    assert table(runs[0]) == {"loss": [(1, 2.0), (2, "nan")]}
    assert runs[0].number("params") == 7 and runs[0].number("hidden_size") == 64
    assert read_runs(["https://wandb.ai/entity/project/runs/abc?nw=x"])[0].source == runs[0].source
    assert asked[-1] == "entity/project/abc"


def test_an_empty_or_unreachable_project_is_an_error(monkeypatch):
    fake_wandb(monkeypatch, [])
    with pytest.raises(DataError, match="entity/project: no runs found"):
        read_runs(["entity/project"])
    fake_wandb(monkeypatch, error=ConnectionError("no route to host"))
    with pytest.raises(DataError, match="entity/project.*no route to host.*wandb login"):
        read_runs(["entity/project"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(DataError, match=r"pip install -e \.\[wandb\]"):
        read_runs(["entity/project"])
