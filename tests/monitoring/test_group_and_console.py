"""Errors of monitors do not stop the training, and the console shows the content of a record."""

from __future__ import annotations

import datetime
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from megatron.errors import ConfigError
from megatron.monitoring import MonitorGroup, build_monitors, default_log_dir, read_metrics
from megatron.monitoring.console import ConsoleMonitor

RECORD = {
    "step": 120,
    "tokens": 61440,
    "train/loss": 2.34567,
    "lr": 3e-4,
    "grad_norm": 0.8125,
    "tokens_per_second": 12345.6,
    "tflops": 0.1234,
    "eta_seconds": 3725.2,
}


class Recorder:
    def __init__(self, fails_in=()):
        self.fails_in, self.calls = fails_in, []

    def _call(self, name):
        self.calls.append(name)
        if name in self.fails_in:
            raise ConnectionError(f"no network in {name}")

    def start(self, header):
        self._call("start")

    def log(self, record):
        self._call("log")

    def tick(self, step):
        self._call("tick")

    def close(self):
        self._call("close")


class Broken(Recorder):
    """A separate class, because the warning names the class."""


@pytest.mark.parametrize("where", ["log", "tick", "close"])
def test_a_failing_monitor_warns_once_and_the_others_continue(where, caplog):
    broken, sound = Broken((where,)), Recorder()
    with caplog.at_level(logging.WARNING), MonitorGroup([broken, sound]) as group:
        group.start({})
        for step in range(3):
            group.log({"step": step})
            group.tick(step)
    assert sound.calls == ["start", "log", "tick", "log", "tick", "log", "tick", "close"]
    assert broken.calls == sound.calls, "it is tried again"
    assert [message.count("Broken") for message in caplog.messages] == [1]
    assert "no network" in caplog.text


def test_a_monitor_that_cannot_start_is_dropped(caplog):
    broken, sound = Broken(("start",)), Recorder()
    with MonitorGroup([broken, sound]) as group:
        group.start({})
        group.log({"step": 1})
    assert broken.calls == ["start"] and sound.calls == ["start", "log", "close"]
    assert len(caplog.messages) == 1


def test_a_required_monitor_that_cannot_start_is_an_error():
    broken = Broken(("start",))
    broken.required = True
    with pytest.raises(ConnectionError), MonitorGroup([broken]) as group:
        group.start({})
    assert broken.calls == ["start", "close"]


def test_a_message_reaches_the_console():
    console = Console(file=io.StringIO(), width=200)
    MonitorGroup([Recorder(), ConsoleMonitor(console=console)]).say("saved x at step 3")
    assert console.file.getvalue() == "saved x at step 3\n"


def test_a_run_outlives_the_reader_of_its_output(tmp_path):
    """The lines are dropped, also one that is printed at the end, and the exit code is that of the run."""
    script = (
        "import sys, time; from megatron.monitoring.console import ConsoleMonitor; monitor = ConsoleMonitor()\n"
        "monitor.say('first'); sys.stdin.read(); monitor.say('second'); monitor.say('third'); monitor.close()\n"
        f"print('end'); open({str(tmp_path / 'done')!r}, 'w').close()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=60) == 0 and process.stderr.read() == b""
    assert (tmp_path / "done").exists()


def test_an_exception_in_the_training_closes_all_and_propagates():
    monitors = [Broken(("close",)), Recorder(), Recorder()]
    with pytest.raises(ZeroDivisionError), MonitorGroup(monitors):
        raise ZeroDivisionError
    assert all(monitor.calls == ["close"] for monitor in monitors)


def test_an_interrupt_is_not_swallowed():
    class Interrupted(Recorder):
        def log(self, record):
            raise KeyboardInterrupt

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), MonitorGroup([recorder, Interrupted()]) as group:
        group.log({"step": 1})
    assert recorder.calls == ["log", "close"]


def test_build_writes_metrics_and_prints(tmp_path, capsys):
    with build_monitors(log_dir=tmp_path / "a" / "b", total_steps=500) as group:
        group.start({"config": {"x": 1}})
        group.log(RECORD)
    assert read_metrics(tmp_path / "a" / "b" / "metrics.jsonl") == ({"config": {"x": 1}}, [RECORD])
    assert "step 120/500 | loss 2.3457" in capsys.readouterr().out


def test_other_ranks_write_nothing(tmp_path, capsys):
    with build_monitors(log_dir=tmp_path / "run", rank=1, tensorboard_dir=tmp_path / "tb") as group:
        group.start({})
        group.log(RECORD)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_a_log_dir_that_cannot_be_created_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="log_dir.*file"):
        build_monitors(log_dir=tmp_path / "file" / "run")


def test_default_log_dir():
    now = datetime.datetime(2026, 3, 1, 9, 30, 5)
    assert default_log_dir("small", now) == Path("runs/small-20260301-093005")
    assert default_log_dir("../my config", now) == Path("runs/my_config-20260301-093005")
    assert default_log_dir("", now).parent == Path("runs")


# --- console ---


def plain_output(*records, total_steps=1000):
    file = io.StringIO()
    monitor = ConsoleMonitor(total_steps, Console(file=file, width=40))
    monitor.start({})
    for record in records:
        monitor.log(record)
        monitor.tick(record["step"])
    monitor.close()
    return file.getvalue()


def test_a_plain_line_has_all_fields_unwrapped_and_uncoloured():
    assert plain_output(RECORD) == (
        "step 120/1000 | loss 2.3457 | lr 3.000e-04 | grad norm 0.812 | 12,346 tokens/s | 0.123 TFLOP/s | ETA 1:02:05\n"
    )


def test_missing_and_nonfinite_numbers_are_handled():
    assert plain_output({"step": 1, "train/loss": float("nan"), "grad_norm": None}) == "step 1/1000 | loss nan\n"
    assert plain_output({"step": 1, "train/loss": 1, "eta_seconds": float("inf")}).endswith("ETA unknown\n")
    assert plain_output({"step": 2}, total_steps=None) == ""


def test_an_evaluation_has_a_separate_line():
    output = plain_output(RECORD | {"valid/loss": 2.0}).splitlines()
    assert output[1] == "step 120/1000 | valid loss 2.0000 | perplexity 7.389"
    assert plain_output({"step": 9, "test/loss": 1e6}) == "step 9/1000 | test loss 1000000.0000 | perplexity inf\n"


def test_a_terminal_has_a_live_line_and_is_restored():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    monitor = ConsoleMonitor(1000, console)
    monitor.start({})
    monitor.log(RECORD)
    monitor.tick(137)
    console._live_stack[-1].refresh()
    shown = file.getvalue()
    monitor.close()
    assert "step 120/1000 | loss 2.3457" in shown and "step 137/1000" in shown
    assert "\x1b[?25l" in shown and file.getvalue().rstrip().endswith("\x1b[2K"), "the cursor and the line are restored"
    assert "\x1b[?25h" in file.getvalue()
