"""The profiler: a trace of the chosen updates on the CPU. The memory history needs a GPU."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from megatron.monitoring import MonitorGroup, ProfilerMonitor
from megatron.monitoring.profiler import SNAPSHOT
from tests.training.harness import configuration, train_here


def products(path):
    """Sizes of the matrices of aten::mm in a trace."""
    events = json.loads(path.read_text())["traceEvents"]
    return [event["args"]["Input Dims"][0] for event in events if event.get("name") == "aten::mm"]


def test_the_chosen_updates_are_traced(tmp_path):
    with MonitorGroup([ProfilerMonitor(2, 4, traces=tmp_path / "traces", memory=None, rank=3)]) as monitors:
        for step in range(1, 7):
            torch.mm(torch.ones(step, 2), torch.ones(2, 2))
            monitors.tick(step)
    (file,) = (tmp_path / "traces").iterdir()
    assert file.name.startswith("rank3.")
    assert products(file) == [[3, 2], [4, 2]]


def test_a_run_that_ends_early_writes_its_trace(tmp_path):
    with MonitorGroup([ProfilerMonitor(1, 100, traces=tmp_path, memory=None)]) as monitors:
        monitors.tick(1)
        torch.mm(torch.ones(5, 2), torch.ones(2, 2))
        monitors.tick(2)
    (file,) = tmp_path.iterdir()
    assert products(file) == [[5, 2]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device has a memory history")
def test_a_cpu_has_no_memory_history_and_the_run_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), MonitorGroup([ProfilerMonitor(1, 2, traces=None, memory=tmp_path)]):
        pass
    assert "torch records no memory history of a CPU" in caplog.text
    assert not (tmp_path / SNAPSHOT).exists()


def test_a_run_is_profiled_by_its_keys(corpus, tmp_path):
    config = configuration(corpus, tmp_path / "log", profile=True, profile_step_start=2, profile_step_stop=4)
    train_here(config, tensorboard_dir=str(tmp_path / "board"), train_iters=6)
    (file,) = (path for path in (tmp_path / "board").iterdir() if path.suffix == ".json")
    events = json.loads(file.read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::embedding_dense_backward" for event in events) == 2  # once in each update
