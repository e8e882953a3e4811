"""Reads runs from a Weights & Biases server through its public API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron.errors import DataError, first_line
from megatron.optional import import_optional
from muneox.runs.run import Run, Series, State, as_number

PATH = re.compile(r"^[\w.-]+/[\w.-]+(/(?:runs/)?[\w-]+)?$")
URL = re.compile(r"^https?://[^/]+/([\w.-]+)/([\w.-]+)(?:/runs/([\w-]+))?/?(?:[?#].*)?$")
STATES: Mapping[str, State] = {
    "finished": "finished",
    "running": "running",
    "crashed": "crashed",
    "failed": "crashed",
    "killed": "crashed",
}


def project_path(source: str) -> str | None:
    """The `entity/project` or `entity/project/run` of a source, or None if the source is not of this form."""
    if match := URL.match(source):
        return "/".join(part for part in match.groups() if part)
    name = source.removeprefix("wandb:")
    return name.replace("/runs/", "/") if PATH.match(name) else None


def read_project(path: str, group: str | None = None, tags: Sequence[str] = ()) -> list[Run]:
    """Read all runs of `entity/project`, or the single run `entity/project/run`, with their whole history.

    group, tags: filters that the server applies. Raises DataError if the package is missing, if the server or the
    project cannot be reached, or if the run does not exist.
    """
    wandb = import_optional("wandb", "wandb", f"`{path}` is not a file or folder; a wandb project", DataError)
    try:
        api = wandb.Api()
        if path.count("/") == 2:
            return [_run(api.run(path))]
        filters = {**({"group": group} if group else {}), **({"tags": {"$all": list(tags)}} if tags else {})}
        return [_run(run) for run in api.runs(path, filters=filters, order="+created_at")]
    except DataError:
        raise
    except Exception as error:  # the client raises many types: no login, no network, no such project
        raise DataError(
            f"`{path}` is not a file or folder, and cannot be read as a wandb project ({first_line(error)}); "
            "check the name, the network and `wandb login`"
        ) from error


def _run(run: Any) -> Run:
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for row in run.scan_history(page_size=10_000):
        step = row.get("_step")
        for name, value in row.items():
            number = _value(value)
            if name != "_step" and step is not None and number is not None:
                steps.setdefault(name, []).append(int(step))
                values.setdefault(name, []).append(number)
    return Run(
        name=str(run.name),
        source=str(run.url),
        config=dict(run.config),
        series={name: Series.of(steps[name], values[name]) for name in values},
        summary={key: value for key, value in dict(run.summary).items() if not key.startswith("_wandb")},
        state=STATES.get(str(run.state), "unknown"),
        group=run.group or None,
        tags=tuple(run.tags or ()),
        run_id=str(run.id),
    )


def _value(value: Any) -> float | None:
    """Convert a value to a number. The server sends NaN and infinity as text, because JSON has no such numbers."""
    if isinstance(value, str):
        return float(value) if value in ("NaN", "Infinity", "-Infinity") else None
    return float(value) if isinstance(value, bool) else as_number(value)
