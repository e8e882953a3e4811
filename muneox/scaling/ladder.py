"""Reads the points of a ladder, one size and one loss per run, from runs, tables and evaluation results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import ConfigError, DataError
from megatron.files import read_json
from megatron.neox_arguments.fields import shared_by
from megatron.neox_arguments.transfer import LADDER, SIZE_LADDER
from muneox.runs import (
    CORPUS,
    Run,
    Series,
    Smoothing,
    as_number,
    at_step,
    at_tokens,
    last,
    near,
    read_runs,
    require_equal,
    require_same_corpus,
    tokens_of,
)
from muneox.runs import smooth as smoothed
from muneox.runs.files import STEP_COLUMNS
from muneox.scaling.compute import training_flops
from muneox.scaling.side_table import with_sizes
from muneox.scaling.table import SUFFIXES, Table, read_table

# Settings that all runs of a ladder must share: our keys, and names that other trainers log.
RECIPE = (*shared_by(LADDER), "optimizer.type")


@dataclass(frozen=True)
class Selection:
    """Selects the runs and the value to read from each: at a step, at a token count, or at the end."""

    x: str
    y: str
    tokens: str = "tokens"
    at_step: int | None = None
    at_tokens: float | None = None
    smoothing: str = "none"
    perplexity: bool = False  # y is a perplexity; its logarithm is the loss
    group: str | None = None
    tags: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()  # keys of the recipe that may differ, or `corpus`
    sizes: str = ""  # see side_table.with_sizes; empty: the runs' own configuration


@dataclass(frozen=True)
class Point:
    """One run of a ladder. tokens: only for L(N, D). curve: the whole series, if the source has one."""

    name: str
    x: float
    y: float
    source: str
    tokens: float | None = None
    curve: Series | None = None
    corpus: str | None = None  # SHA-256, if the run records it


def read_points(sources: Sequence[str], chosen: Selection, law: str = "size") -> tuple[list[Point], list[str]]:
    """The points in the order of the sources, and warnings.

    A CSV, TSV or Parquet file with the columns x and y is a table, one row per run. A .json file holds results of
    lm-evaluation-harness, in which y is `task/metric`. muneox.runs reads everything else. law: size, surface (reads
    tokens too) or compute (x is FLOPs, and every logged point of a run is a point). Raises DataError if a name is
    missing, with the names that exist, or if the recipes differ; ConfigError if the runs end at different steps.
    """
    points: list[Point] = []
    others: list[str] = []
    warnings: list[str] = []
    names: set[str] = set()  # of all runs, and their ids
    for source in sources:
        is_file = Path(source).is_file()
        table = _table(Path(source), chosen, law) if is_file and source.endswith(SUFFIXES) else None
        if table is not None:
            found, remarks = _table_points(table, chosen, law)
            points += found
            warnings += remarks
        elif is_file and source.endswith(".json"):
            points.append(_evaluation(Path(source), chosen))
        else:
            others.append(source)
    if others:
        runs = read_runs(others, group=chosen.group, tags=chosen.tags, where=dict(chosen.where))
        runs = with_sizes(runs, chosen.sizes) if chosen.sizes else runs
        names |= {name for run in runs for name in (run.name, run.run_id) if name}
        runs = [run for run in runs if not {run.name, run.run_id} & set(chosen.exclude)]
        alike = [*RECIPE, *(shared_by(SIZE_LADDER) if law == "size" else ())]
        if "corpus" not in chosen.allow:
            require_same_corpus(runs, "a ladder")
        require_equal(runs, [key for key in alike if key not in chosen.allow], "a ladder")
        points += [point for run in runs for point in _run_points(run, chosen, law)]
        warnings += [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
        if law == "size":
            _same_end(runs, chosen)
    names |= {point.name for point in points}
    for unknown in sorted(set(chosen.exclude) - names):
        raise DataError(_unknown("--exclude: the selection", "run", unknown, sorted(names)))
    points = [point for point in points if point.name not in chosen.exclude]
    if not points:
        raise DataError("no runs are left after the filters; check --group, --tag, --where and --exclude")
    return [_as_loss(point) for point in points] if chosen.perplexity else points, warnings


def finite(points: Sequence[Point], drop: bool) -> tuple[list[Point], list[Point]]:
    """Split points into those with a finite loss and those without.

    Raises DataError that names the latter, unless `drop` is set.
    """
    good = [point for point in points if math.isfinite(point.y)]
    bad = [point for point in points if not math.isfinite(point.y)]
    if bad and not drop:
        names = ", ".join(point.name for point in bad)
        raise DataError(f"the loss is not finite in {names}: these runs diverged; leave them out with --drop-diverged")
    return good, bad


def _table(path: Path, chosen: Selection, law: str) -> Table | None:
    """A table with one row per run; None if the file is the history of one run, which has no size column."""
    table = read_table(path)
    if law == "compute":
        if chosen.x not in table.columns and any(column in table.columns for column in STEP_COLUMNS):
            return None
    elif chosen.x not in table.columns:
        raise DataError(_unknown(path, "column", chosen.x, table.columns))
    for key in (chosen.y, *(key for key, _ in chosen.where)):
        if key not in table.columns:
            raise DataError(_unknown(path, "column", key, table.columns))
    return table


def _same(cell: str, wanted: str) -> bool:
    first, second = as_number(cell), as_number(wanted)
    return cell == wanted if first is None or second is None else first == second


def _table_points(table: Table, chosen: Selection, law: str) -> tuple[list[Point], list[str]]:
    """The points of a table's rows, and warnings."""
    repeated, warnings = table.repeated(), []
    if repeated:
        warnings.append(f"{table.path}: {len(repeated)} rows repeat another one in every cell and count once")
    rows = [
        i
        for i, row in enumerate(table.rows)
        if i not in repeated and all(_same(row.get(key, ""), value) for key, value in chosen.where)
    ]
    sizes = _table_flops(table, rows, chosen) if law == "compute" else [table.number(i, chosen.x) for i in rows]
    points: list[Point] = []
    for i, x in zip(rows, sizes):
        row = table.rows[i]
        name = row.get("name") or row.get("run") or f"{chosen.x}={row.get(chosen.x, f'{x:g}')}"
        tokens = table.number(i, chosen.tokens) if law == "surface" else None
        points.append(Point(name, x, table.number(i, chosen.y), str(table.path), tokens))
    if law == "size" and chosen.x != chosen.tokens:
        warnings += _mixed_durations(table, rows, sizes, chosen)
    return points, warnings


def _table_flops(table: Table, rows: Sequence[int], chosen: Selection) -> list[float]:
    """FLOPs of the rows: a column of FLOPs, or 6 N D. Raises DataError if the table has neither."""
    for column in (chosen.x, "flops", "FLOPs"):
        if column in table.columns and _names_flops(column):
            return [table.number(i, column) for i in rows]
    if chosen.x == "params" and {"params", chosen.tokens} <= set(table.columns):
        params, tokens = ([table.number(i, column) for i in rows] for column in ("params", chosen.tokens))
        return list(training_flops(params, tokens).tolist())
    raise DataError(
        f"{table.path}: --law compute needs FLOPs, and `{chosen.x}` is no column of FLOPs: add a column `flops`, or "
        f"`params` and `{chosen.tokens}`, from which 6 N D follows; the table has {', '.join(table.columns)}"
    )


def _names_flops(column: str) -> bool:
    return "flop" in column.lower() or column.lower() in ("c", "compute")


def _mixed_durations(table: Table, rows: Sequence[int], sizes: Sequence[float], chosen: Selection) -> list[str]:
    """A warning if the rows differ in tokens and in tokens per size: L(N) then mixes two effects.

    The law does not need the tokens, so rows without them are left out.
    """
    found = [(size, table.number_or_none(i, chosen.tokens)) for i, size in zip(rows, sizes)]
    known = [(size, count) for size, count in found if count is not None and size > 0]
    tokens, ratios = [count for _, count in known], [count / size for size, count in known]
    if not known or any(max(values) <= 1.1 * min(values) for values in (tokens, ratios)):
        return []
    return [
        f"{table.path}: the runs trained on {min(tokens):.3g} to {max(tokens):.3g} tokens, neither equal nor in "
        f"proportion to `{chosen.x}`, so two things change at once: use --law surface, or select runs with --where"
    ]


def _evaluation(path: Path, chosen: Selection) -> Point:
    """The point of an lm-evaluation-harness results file.

    The size is the configuration value x. For x = params it can also be `model_num_parameters`.
    """
    try:
        content = read_json(path)
        results, config = content["results"], content.get("config") or {}
        if not isinstance(config, Mapping):
            raise TypeError("config")
        metrics = {
            f"{task}/{name.split(',')[0]}": number
            for task, values in results.items()
            for name, value in values.items()
            if (number := as_number(value)) is not None
        }
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a results file of lm-evaluation-harness: it has no `results`") from error
    if chosen.y not in metrics:
        raise DataError(_unknown(path, "metric", chosen.y, list(metrics)))
    run = Run(name=path.stem, source=str(path), config={**content, **config})
    x = run.number(chosen.x)
    x = run.number("model_num_parameters") if x is None and chosen.x == "params" else x
    if x is None:
        raise DataError(_unknown(path, "configuration value", chosen.x, list(config)))
    return Point(str(content.get("model_name") or path.stem), x, metrics[chosen.y], str(path))


def _run_points(run: Run, chosen: Selection, law: str) -> Iterator[Point]:
    curve = smoothed(run.series_of(chosen.y), Smoothing.parse(chosen.smoothing))
    run = replace(run, series={**run.series, chosen.y: curve})
    if law == "compute":
        for flops, value in zip(_flops(run, curve), curve.values):
            yield Point(run.name, float(flops), float(value), run.source, corpus=run.value(CORPUS))
        return
    x = size_of(run, chosen.x)
    step, value = last(run, chosen.y)
    if chosen.at_step is not None:
        step, value = chosen.at_step, at_step(run, chosen.y, chosen.at_step)
    elif chosen.at_tokens is not None:
        value = at_tokens(run, chosen.y, chosen.at_tokens)
    tokens = None
    if law == "surface":
        tokens = chosen.at_tokens or float(tokens_of(run, np.array([step], np.int64))[0])
    yield Point(run.name, x, value, run.source, tokens, curve, run.value(CORPUS))


def size_of(run: Run, name: str) -> float:
    """The run's size from configuration value `name`; `width` means hidden_size. Raises DataError if it is missing."""
    value = run.number("hidden_size" if name == "width" else name)
    if value is None:
        raise DataError(_unknown(run.name, "configuration value", name, list(_names(run.config))))
    return value


def _flops(run: Run, curve: Series) -> np.ndarray:
    tokens, per_token = tokens_of(run, curve.steps), run.number("flops_per_token")
    return tokens * per_token if per_token is not None else training_flops(size_of(run, "params"), tokens)


def _names(tree: Mapping[str, Any]) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _names(value)
        elif as_number(value) is not None:
            yield str(name)


def _same_end(runs: Sequence[Run], chosen: Selection) -> None:
    if chosen.at_step is not None or chosen.at_tokens is not None:
        return
    ends = {run.name: last(run, chosen.y)[0] for run in runs}
    if len(set(ends.values())) <= 1:
        return
    shortest, longest = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    found = f"the runs end at different steps ({shortest} at {ends[shortest]}, {longest} at {ends[longest]})"
    early = [run.name for run in runs if _ended_early(run, ends[run.name]) and ends[run.name] < ends[longest]]
    if early:
        raise ConfigError(
            f"{found}, and {', '.join(early)} crashed or stopped early: leave {'it' if len(early) == 1 else 'them'} "
            f"out with --exclude {' '.join(early)}, or compare all runs at one step with --at-step {ends[shortest]}"
        )
    raise ConfigError(
        f"{found}; compare them at one step with --at-step {ends[shortest]}, or at one token count with --at-tokens"
    )


def _ended_early(run: Run, step: int) -> bool:
    """Whether a run crashed, or ended before the step that its configuration names."""
    planned = run.number("train_iters")
    return run.state == "crashed" or (run.state == "unknown" and planned is not None and step < planned)


def _as_loss(point: Point) -> Point:
    if not point.y > 0:
        return replace(point, y=float("nan"))
    return replace(point, y=math.log(point.y), curve=None)


def _unknown(where: object, kind: str, name: str, names: Sequence[str]) -> str:
    close = near(name, names)
    known = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(sorted(names)[:12]) or 'none'}"
    return f"{where} has no {kind} `{name}`; {known}"
