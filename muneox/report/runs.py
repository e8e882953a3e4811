"""The report's section on the runs behind a result: what was found, what it cost, and what it saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from megatron.errors import DataError
from muneox.output import short
from muneox.report.content import Cell, Entry, Figure, Section, Table, Text, colour, label, number
from muneox.runs import Run, read_runs

LEAD = "Hyperparameters are searched on a small proxy. Training FLOPs are the model's FLOPs per token times its tokens."


def flops(run: Run) -> float:
    """Training FLOPs of a run, from its header and its last logged token count. 0 if it records neither."""
    per_token, tokens = run.number("model.flops_per_token"), run.series.get("tokens")
    return 0.0 if per_token is None or tokens is None or not len(tokens) else per_token * float(tokens.values[-1])


def section(search: Path | None, ladder: Path | None, target: Path | None, sample: Path | None) -> Section:
    """Build the section from folders of runs. search: with best.yml. sample: text, or JSON lines of generate.py."""
    named = {"search": search, "ladder": ladder, "target": target}
    groups = {name: read_runs([str(path)]) for name, path in named.items() if path is not None}
    blocks: list[Figure | Table | Text] = []
    headlines = []
    if search is not None:
        best = _best(search / "best.yml")
        blocks.append(Table("Hyperparameters found by the search", ("key", "value"), [*_rows(best)]))
        headlines.append(f"{len(groups['search'])} trials of the search found {_said(best)}")
    if groups:
        blocks.append(_costs(groups))
        headlines += _savings(groups)
    if "ladder" in groups:
        blocks.append(_curves(groups["ladder"]))
    if sample is not None:
        blocks.append(Text("A sample of the model's text", _sample(sample)))
    headline = ". ".join(headlines) or "A sample of the model's text"
    return Section("runs", "Search, cost and sample", "note", headline, LEAD if groups else "", tuple(blocks))


def _best(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: name the folder of a search that has ended ({error})") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path} is not what tools/mup/search.py writes: expected keys and values")
    return {str(key): value for key, value in content.items() if key != "overlay"}


def _rows(best: Mapping[str, object]) -> list[tuple[Entry, ...]]:
    return [(key, number(value) if isinstance(value, int | float) else str(value)) for key, value in best.items()]


def _said(best: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in best.items() if isinstance(value, int | float))


def _costs(groups: Mapping[str, Sequence[Run]]) -> Table:
    whole = sum(map(flops, groups.get("target", ())))
    rows: list[tuple[Entry, ...]] = []
    for name, runs in groups.items():
        total = sum(map(flops, runs))
        share = number(total / whole, ".1%") if whole else Cell("–")
        rows.append((name, number(len(runs), ".0f"), number(total, ".3g"), share))
    return Table("What it cost", ("part", "runs", "training FLOPs", "of the target's"), rows)


def _savings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """What the same number of trials would have cost at the size of the target."""
    whole = sum(map(flops, groups.get("target", ())))
    trials = groups.get("search", ())
    if not whole or not trials:
        return []
    spent = sum(map(flops, trials))
    return [f"The search cost {spent / whole:.0%} of one training of the target, instead of {len(trials):,} trainings"]


def _size(run: Run) -> float:
    """Parameters of a run. 0 if it does not record them."""
    return run.number("model.params") or 0.0


def _curves(runs: Sequence[Run]) -> Figure:
    """Loss of every run of the ladder over its steps."""
    trained = any("train/loss" in run.series for run in runs)
    metric = "train/loss" if trained or not all("valid/loss" in run.series for run in runs) else "valid/loss"
    sizes = sorted(set(map(_size, runs)))
    data, seen = [], set()
    for run in sorted(runs, key=_size):
        if (series := run.series.get(metric)) is None:
            continue
        size = _size(run)
        trace = {"type": "scatter", "mode": "lines", "name": f"{short(size)} parameters", "legendgroup": f"{size:g}"}
        hover = f"{run.name}<br>step %{{x}}<br>%{{y:.4f}}<extra></extra>"
        line = {"color": colour(sizes.index(size)), "width": 1.5}
        points = {"x": series.steps.tolist(), "y": series.values.tolist()}
        data.append({**trace, **points, "line": line, "hovertemplate": hover, "showlegend": size not in seen})
        seen.add(size)
    axes = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": label(metric)}}}
    return Figure(
        "ladder-curves", "Runs of the ladder", f"{label(metric)} of {len(runs)} runs over the steps.", data, axes
    )


def _sample(path: Path) -> str:
    """The first sample of a file of text, or of JSON lines with `context` and `text`."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not text.startswith("{"):
        return text
    try:
        content = json.loads(text.splitlines()[0])
        return str(content["context"] or "") + str(content["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not what generate.py writes: no JSON lines with context and text") from error
