"""Reads runs from metrics.jsonl, TensorBoard event files and CSV histories."""

from __future__ import annotations

import ast
import contextlib
import csv
import importlib
import io
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from megatron.errors import DataError, first_line
from megatron.files import open_regular
from megatron.monitoring import read_metrics
from megatron.optional import import_optional
from muneox.runs.run import Run, Series, State
from muneox.runs.wandb_file import LIVE_SECONDS

EVENTS = "events.out.tfevents."
STEP_COLUMNS = ("step", "_step", "global_step", "trainer/global_step", "iteration", "iter")
_MAX_STEP = 2**53  # larger numbers are not exact in a CSV file of floats
GENERIC_NAMES = ("metrics", "history")  # files with these names are named after their folder


def read_jsonl(path: Path) -> Run:
    """Read a metrics.jsonl. Its header (`config`, `model`, `mup`, batch size, sequence length) is the configuration."""
    header, records = read_metrics(path)
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and isinstance(value, bool | int | float):
                steps.setdefault(name, []).append(record["step"])
                values.setdefault(name, []).append(float(value))
    series = {name: Series.of(steps[name], values[name]) for name in values}
    config = header.get("config")
    config = config if isinstance(config, Mapping) else {}
    step = records[-1]["step"] if records else 0
    return Run(
        name=str(config.get("wandb_run_name") or _file_name(path)),
        source=str(path),
        config=header,
        series=series,
        summary=_last_values(series),
        state=_state(path, step, config.get("train_iters")),
        group=group if isinstance(group := config.get("wandb_group"), str) else None,
        warnings=_torn(path),
    )


def _file_name(path: Path) -> str:
    return path.resolve().parent.name if path.stem.split(".")[0] in GENERIC_NAMES else path.stem


def _torn(path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        whole = file.read(1) == b"\n"
    return () if whole else (f"{path}: the last line is incomplete and was left out",)


def _state(path: Path, step: int, train_iters: Any) -> State:
    if isinstance(train_iters, int) and step >= train_iters:
        return "finished"
    return "running" if time.time() - path.stat().st_mtime < LIVE_SECONDS else "unknown"


def _last_values(series: Mapping[str, Series]) -> dict[str, float]:
    return {name: float(one.values[-1]) for name, one in series.items() if len(one)}


@contextlib.contextmanager
def csv_text(path: Path) -> Iterator[TextIO]:
    """The text of a CSV file, without a byte-order mark. Raises DataError where the block cannot read it."""
    try:
        with open_regular(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error


def read_csv(path: Path) -> Run:
    """Read the history of one run: a step column (`step`, `Step`, `iteration`, ...) and one column per metric.

    Empty cells and text are left out. Raises DataError if there is no step column or no row.
    """
    with csv_text(path) as file:
        rows = [row for row in csv.reader(file) if row]
    head = [name.strip() for name in rows[0]] if rows else []
    column = next((i for i, name in enumerate(head) if name.lower() in STEP_COLUMNS), None)
    if column is None or len(rows) < 2:
        raise DataError(
            f"{path} is not the history of a run: it needs a column `step` and one row per step, and has the columns "
            f"{', '.join(head) or 'none'} and {max(len(rows) - 1, 0)} rows"
        )
    points: dict[str, tuple[list[int], list[float]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        step = _float(row[column]) if column < len(row) else None
        if step is None or not abs(step) < _MAX_STEP:  # also for NaN
            cell = row[column] if column < len(row) else ""
            raise DataError(f"{path}, row {number}: the step is `{cell[:40]}`, expected a number below {_MAX_STEP:g}")
        for i, (name, cell) in enumerate(zip(head, row)):
            if i != column and (value := _float(cell)) is not None:
                steps, values = points.setdefault(name, ([], []))
                steps.append(int(step))
                values.append(value)
    series = {name: Series.of(*columns) for name, columns in points.items()}
    return Run(name=_file_name(path), source=str(path), series=series, summary=_last_values(series))


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def read_tensorboard(folder: Path) -> Run:
    """Read the scalars of a folder with TensorBoard event files, and a configuration that was logged as text.

    Raises DataError if the package is missing or there are no scalars.
    """
    module = "tensorboard.backend.event_processing.event_accumulator"
    events = import_optional(module, "tensorboard", f"reading the TensorBoard events in {folder}", DataError)
    for file in folder.glob(f"{EVENTS}*"):
        try:
            open_regular(file).close()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
    quiet = logging.getLogger("tensorboard")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        everything = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}
        log = events.EventAccumulator(str(folder), size_guidance=everything).Reload()
        series, config = _events(log)
    except Exception as error:  # the library raises many types for damaged files
        raise DataError(f"{folder} has damaged TensorBoard events: {first_line(error)}") from error
    finally:
        quiet.setLevel(level)
    if not series:
        raise DataError(f"{folder} has TensorBoard events but no scalars")
    return Run(
        name=folder.resolve().name, source=str(folder), config=config, series=series, summary=_last_values(series)
    )


def _events(log: Any) -> tuple[dict[str, Series], dict[str, Any]]:
    tags = log.Tags()
    series = {}
    for name in tags["scalars"]:
        points = log.Scalars(name)
        series[name] = Series.of([point.step for point in points], [point.value for point in points])
    config = {}
    for name in tags["tensors"]:
        tensor = log.Tensors(name)[-1].tensor_proto
        if name.endswith("/text_summary") and tensor.string_val:
            config[name.removesuffix("/text_summary")] = _literal(tensor.string_val[0].decode(errors="replace"))
        elif not tensor.string_val:  # TensorFlow 2 writes scalars as tensors
            points = [(e.step, value) for e in log.Tensors(name) if (value := _scalar(e.tensor_proto)) is not None]
            if points:
                series[name] = Series.of([step for step, _ in points], [value for _, value in points])
    return series, config


def _scalar(tensor: Any) -> float | None:
    make_array = importlib.import_module("tensorboard.util.tensor_util").make_ndarray
    array = make_array(tensor)
    return float(array) if array.size == 1 and array.dtype.kind in "fiub" else None


def _literal(text: str) -> Any:
    """Parse a Python literal that our monitor wrote as a block of Markdown. Other text is returned unchanged."""
    text = text.strip().removeprefix("```").removesuffix("```").strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
