"""From what a user names (files, folders, globs, projects) to runs."""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from muneox.runs.files import read_csv, read_jsonl, read_tensorboard
from muneox.runs.run import Run, as_number, near
from muneox.runs.wandb_api import project_path, read_project
from muneox.runs.wandb_file import read_wandb_file

logger = logging.getLogger(__name__)

EVENTS = "events.out.tfevents."


def read_runs(
    sources: Sequence[str],
    *,
    group: str | None = None,
    tags: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
) -> list[Run]:
    """Runs in the order of their sources; one that is named twice is read once.

    sources: wandb offline folders (`./wandb`, one run's folder, a run-*.wandb file), wandb projects (`entity/project`,
    `entity/project/run` or their URL), metrics.jsonl files and folders that hold them, TensorBoard event files and
    their folders, the CSV of one run's history, and globs of all these. A folder is searched to its depths. Where a
    run's folder holds its metrics.jsonl, wandb's and TensorBoard's copies below it are not read again.
    group, tags: only runs of that group, with all those tags. where: only runs whose configuration has these values.
    Raises DataError if a source is missing or unreadable, or if no run is left. An unreadable run among others in a
    folder is left out with a logged warning.
    """
    if not sources:
        raise DataError("no runs are named: give wandb folders, metrics.jsonl files, folders that hold them, or globs")
    runs: dict[str, Run] = {}
    for source in sources:
        for run in _read(str(source), group, tags):
            runs.setdefault(run.source, run)
    everything = list(runs.values())
    chosen = [run for run in everything if _fits(run, group, tags, where or {})]
    if not chosen:
        raise DataError(_nothing_left(everything, sources, group, tags, where or {}))
    return _with_unique_names(chosen)


def _read(source: str, group: str | None, tags: Sequence[str]) -> Iterator[Run]:
    if Path(source).exists():
        yield from _read_path(Path(source))
    elif source.startswith(("https://", "http://")) and (project := project_path(source)):
        yield from read_project(project, group, tags)
    elif glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        if not matches:
            raise DataError(f"{source} matches no file or folder")
        for match in matches:
            yield from _read_path(Path(match))
    elif (project := project_path(source)) and not Path(source.split("/")[0]).is_dir():
        yield from read_project(project, group, tags)
    else:
        raise DataError(f"{source} is no file or folder, and not the `entity/project` of a project on wandb")


def _read_path(path: Path) -> Iterator[Run]:
    if not path.is_dir():
        yield _read_file(path)
        return
    try:
        places = list(_runs_below(path))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not places:
        raise DataError(f"{path} holds no runs: no metrics.jsonl, no wandb run-*.wandb, no TensorBoard events")
    unreadable: list[DataError] = []
    for place in places:
        try:
            yield read_tensorboard(place) if place.is_dir() else _read_file(place)
        except DataError as error:  # such as a run that was killed before its first line; the others count
            unreadable.append(error)
    if len(unreadable) == len(places):
        raise unreadable[0]
    for reason in unreadable:
        logger.warning("left out: %s", reason)


def _read_file(path: Path) -> Run:
    if path.suffix == ".wandb":
        return read_wandb_file(path)
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".csv":
        return read_csv(path)
    if path.name.startswith(EVENTS):
        return read_tensorboard(path.parent)
    raise DataError(f"{path} is not known as a run: *.jsonl, *.wandb, *.csv or {EVENTS}* are")


def _runs_below(folder: Path) -> Iterator[Path]:
    """metrics.jsonl and *.wandb files, and folders with TensorBoard's events; links (wandb's latest-run) not."""
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
    """Whether a configuration value is what was typed: 64 is 64.0, True is true, None is null."""
    wanted, found = as_number(text), as_number(value)
    if wanted is not None and found is not None:
        return wanted == found
    if value is None:
        return text.lower() in ("none", "null")
    return str(value).lower() == text.lower()


def _nothing_left(
    runs: Sequence[Run], sources: Sequence[str], group: str | None, tags: Sequence[str], where: Mapping[str, str]
) -> str:
    """Why the filters left no run, by the first of them that no run passes."""
    if not runs:
        return f"{', '.join(map(str, sources))}: no runs there" + (
            " with this group and these tags" * bool(group or tags)
        )
    if group is not None and not any(run.group == group for run in runs):
        known = sorted({run.group for run in runs if run.group})
        return f"no run is of group `{group}`; groups: {', '.join(known) or 'none'}"
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
            return f"no run has {name} = {text}; there are {', '.join(sorted({str(value) for value in values}))}"
    return f"of {len(runs)} runs none passes all the filters at once"


def _with_unique_names(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name get their folder's (or, on a server, their id) added, so that a picture tells them apart."""
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
