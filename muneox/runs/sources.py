"""Finds and reads the runs that a user names as files, folders, globs or projects."""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import DataError
from muneox.runs.files import EVENTS, read_csv, read_jsonl, read_tensorboard
from muneox.runs.run import Run, Series, as_number, near
from muneox.runs.wandb_api import project_path, read_project
from muneox.runs.wandb_file import read_wandb_file

logger = logging.getLogger(__name__)


def read_runs(
    sources: Sequence[str],
    *,
    group: str | None = None,
    tags: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
) -> list[Run]:
    """Read runs, in the order of their sources. A run that is named twice is read once.

    Sources with the same wandb id are one run that was resumed: its metrics are joined, and the later source counts
    where both have a step.

    sources: any of

    - wandb offline folders (`./wandb`, the folder of one run, a run-*.wandb file)
    - wandb projects (`entity/project`, `entity/project/run` or their URL)
    - metrics.jsonl files
    - TensorBoard event files or their folders
    - CSV files with the history of one run
    - folders, which are searched recursively, and globs of the above

    If a folder has a metrics.jsonl, wandb's and TensorBoard's copies of the same run below it are not read.

    group, tags: only runs of this group and with all of these tags. where: only runs with these configuration values.
    Raises DataError if a source is missing or unreadable, or if no runs are left. In a folder with several runs, an
    unreadable one is left out with a logged warning.
    """
    if not sources:
        raise DataError("no runs are named; expected wandb folders, metrics.jsonl files, folders with them, or globs")
    runs: dict[str, Run] = {}
    for source in sources:
        for run in _read(str(source), group, tags):
            runs.setdefault(run.source, run)
    everything = _joined(list(runs.values()))
    chosen = [run for run in everything if _fits(run, group, tags, where or {})]
    if not chosen:
        raise DataError(_nothing_left(everything, sources, group, tags, where or {}))
    return _with_unique_names(chosen)


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Join the parts of resumed runs, which have one id. wandb's folders sort by the time of their start."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(run.run_id or run.source, []).append(run)
    return [_join(same) if len(same) > 1 else same[0] for same in parts.values()]


def _join(parts: Sequence[Run]) -> Run:
    series = {}
    for name in dict.fromkeys(name for part in parts for name in part.series):
        found = [part.series[name] for part in parts if name in part.series]
        series[name] = Series.of(np.concatenate([s.steps for s in found]), np.concatenate([s.values for s in found]))
    summary = {key: value for part in parts for key, value in part.summary.items()}
    warnings = tuple(warning for part in parts for warning in part.warnings)
    config = next((part.config for part in reversed(parts) if part.config), {})
    return dataclasses.replace(parts[-1], config=config, series=series, summary=summary, warnings=warnings)


def _read(source: str, group: str | None, tags: Sequence[str]) -> Iterator[Run]:
    if Path(source).exists():
        yield from _read_path(Path(source))
    elif source.startswith(("https://", "http://")) and (project := project_path(source)):
        yield from read_project(project, group, tags)
    elif glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        if not matches:
            raise DataError(f"{source} does not match any file or folder")
        for match in matches:
            yield from _read_path(Path(match))
    elif (project := project_path(source)) and not Path(source.split("/")[0]).is_dir():
        yield from read_project(project, group, tags)
    else:
        raise DataError(f"{source} is not a file or folder, and not the `entity/project` of a wandb project")


def _read_path(path: Path) -> Iterator[Run]:
    if not path.is_dir():
        yield _read_file(path)
        return
    try:
        places = list(_runs_below(path))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not places:
        raise DataError(f"{path} has no runs: no metrics.jsonl, no wandb run-*.wandb, no TensorBoard events")
    unreadable: list[DataError] = []
    for place in places:
        try:
            yield read_tensorboard(place) if place.is_dir() else _read_file(place)
        except DataError as error:  # for example a run killed before its first line; the other runs are still read
            unreadable.append(error)
    if len(unreadable) == len(places):
        raise unreadable[0]
    for reason in unreadable:
        logger.warning("run left out: %s", reason)


def _read_file(path: Path) -> Run:
    if path.suffix == ".wandb":
        return read_wandb_file(path)
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".csv":
        return read_csv(path)
    if path.name.startswith(EVENTS):
        return read_tensorboard(path.parent)
    raise DataError(f"{path} is not a file of a run; expected *.jsonl, *.wandb, *.csv or {EVENTS}*")


def _runs_below(folder: Path) -> Iterator[Path]:
    """metrics.jsonl and *.wandb files, and folders with TensorBoard events. Links (wandb's latest-run) are skipped."""
    if (folder / "metrics.jsonl").is_file():
        yield folder / "metrics.jsonl"
        return
    entries = sorted(folder.iterdir())
    yield from (entry for entry in entries if entry.suffix == ".wandb" and entry.is_file())
    if any(entry.name.startswith(EVENTS) for entry in entries):
        yield folder
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from _runs_below(entry)


def _fits(run: Run, group: str | None, tags: Iterable[str], where: Mapping[str, str]) -> bool:
    return (
        (group is None or run.group == group)
        and set(tags) <= set(run.tags)
        and all(_alike(run.value(name), text) for name, text in where.items())
    )


def _alike(value: Any, text: str) -> bool:
    """Whether a configuration value equals typed text: 64 equals 64.0, True equals true, None equals null."""
    wanted, found = as_number(text), as_number(value)
    if wanted is not None and found is not None:
        return wanted == found
    if value is None:
        return text.lower() in ("none", "null")
    return str(value).lower() == text.lower()


def _nothing_left(
    runs: Sequence[Run], sources: Sequence[str], group: str | None, tags: Sequence[str], where: Mapping[str, str]
) -> str:
    """The error message for the first filter that no run passes."""
    if not runs:
        return f"{', '.join(map(str, sources))}: no runs found" + (
            " with this group and these tags" * bool(group or tags)
        )
    if group is not None and not any(run.group == group for run in runs):
        known = sorted({run.group for run in runs if run.group})
        return f"no run has the group `{group}`; groups: {', '.join(known) or 'none'}"
    for tag in tags:
        known = sorted({known for run in runs for known in run.tags})
        if tag not in known:
            return f"no run has the tag `{tag}`; tags: {', '.join(known) or 'none'}"
    for name, text in where.items():
        values = [run.value(name) for run in runs]
        if all(value is None for value in values):
            close = near(name, {str(key) for run in runs for key in run.config})
            return f"no run has `{name}` in its configuration" + (f"; did you mean {' or '.join(close)}?" * bool(close))
        if not any(_alike(value, text) for value in values):
            return f"no run has {name} = {text}; values: {', '.join(sorted({str(value) for value in values}))}"
    return f"none of the {len(runs)} runs passes all filters"


def _with_unique_names(runs: Sequence[Run]) -> list[Run]:
    """Make names unique: runs with the same name get the name of their folder, or their id on a server, as a suffix."""
    times = Counter(run.name for run in runs)
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        if times[run.name] > 1:
            seen[run.name] += 1
            place = run.source.rstrip("/").split("/")
            part = place[-2] if len(place) > 1 and "." in place[-1] else place[-1]
            suffix = part if part != run.name else str(seen[run.name])
            run = dataclasses.replace(run, name=f"{run.name} ({suffix})")
        named.append(run)
    return named
