"""Compares runs: values at a step, at a token count or at the end, smoothing, and checks for equal recipes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron.errors import ConfigError, DataError
from muneox.runs.run import Run, Series, as_number

CORPUS = "corpus.sha256"  # key of a run's header that records its corpus
TOKEN_SERIES = ("tokens", "consumed_tokens", "train/tokens", "num_tokens")


def last(run: Run, metric: str) -> tuple[int, float]:
    """Step and value of the metric's last logged point."""
    series = run.series_of(metric)
    return int(series.steps[-1]), float(series.values[-1])


def at_step(run: Run, metric: str, step: float, *, interpolate: bool = False) -> float:
    """The metric's value at a step; can be NaN or infinite.

    interpolate: interpolate linearly between the neighbouring logged points. Raises DataError that names the run and
    the nearest steps if nothing was logged at the step. With interpolate, raises it only outside the logged range.
    """
    series = run.series_of(metric)
    i = int(np.searchsorted(series.steps, step))
    if i < len(series) and series.steps[i] == step:
        return float(series.values[i])
    inside = 0 < i < len(series)
    if interpolate and inside:
        return float(np.interp(step, series.steps[i - 1 : i + 1], series.values[i - 1 : i + 1]))
    neighbours = sorted({int(series.steps[max(i - 1, 0)]), int(series.steps[min(i, len(series) - 1)])})
    nearby = f"nearest: {' and '.join(map(str, neighbours))}"
    if not inside:
        nearby = f"it was logged from step {series.steps[0]} to {series.steps[-1]}"
    raise DataError(f"run {run.name} ({run.source}) has no `{metric}` at step {step:g}; {nearby}")


def tokens_of(run: Run, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Tokens trained on after each step.

    They are read from a logged series, or computed as steps x train_batch_size x seq_length. Raises DataError if the
    run has neither.
    """
    name = next((name for name in TOKEN_SERIES if len(run.series.get(name, ()))), None)
    if name is not None:
        series = run.series[name]
        # The line starts at the origin: no tokens before the first step.
        x, y = np.append(0, series.steps), np.append(0.0, series.values)
        tokens = np.asarray(np.interp(steps, x, y), np.float64)
        beyond = steps > x[-1]
        tokens[beyond] = steps[beyond] * (y[-1] / max(x[-1], 1))
        return tokens
    batch, length = run.number("train_batch_size"), run.number("seq_length")
    if batch is None or length is None:
        raise DataError(
            f"run {run.name} ({run.source}) has no token count: it needs a metric `tokens`, "
            "or train_batch_size and seq_length in its configuration"
        )
    return np.asarray(steps * batch * length, dtype=np.float64)


def at_tokens(run: Run, metric: str, tokens: float) -> float:
    """The metric's value at a token count, interpolated linearly between logged points.

    Raises DataError if the count is outside the logged range.
    """
    series = run.series_of(metric)
    counts = tokens_of(run, series.steps)
    if not counts[0] <= tokens <= counts[-1]:
        raise DataError(
            f"run {run.name} ({run.source}) has no `{metric}` at {tokens:g} tokens; "
            f"it was logged from {counts[0]:g} to {counts[-1]:g} tokens"
        )
    return float(np.interp(tokens, counts, series.values))


def common_steps(runs: Sequence[Run], metric: str) -> NDArray[np.int64]:
    """The steps at which every run has logged the metric. Raises DataError if there are none."""
    steps = runs[0].series_of(metric).steps
    for run in runs[1:]:
        shared = np.intersect1d(steps, run.series_of(metric).steps)
        if not len(shared):
            raise DataError(f"runs {runs[0].name} and {run.name} have logged `{metric}` at no common step")
        steps = shared
    return steps


@dataclass(frozen=True)
class Smoothing:
    """A smoothing method. `str` describes it. A smoothed value never depends on later steps.

    kind: none; mean or median of the last `points` logged points (fewer at the beginning); or ema, an exponential
    moving average with alpha = 2 / (points + 1) and Adam's bias correction.
    """

    kind: Literal["none", "mean", "median", "ema"] = "none"
    points: int = 1

    @classmethod
    def parse(cls, text: str) -> Smoothing:
        """Parse `none`, `mean:20`, `median:5` or `ema:20`. Raises ConfigError for anything else."""
        kind, _, points = text.partition(":")
        if text == "none":
            return cls()
        if kind not in ("mean", "median", "ema") or not points.isdecimal() or int(points) < 1:
            raise ConfigError(f"smoothing: expected none, mean:20, median:20 or ema:20 (logged points), got `{text}`")
        return cls(kind, int(points))  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "none":
            return "not smoothed"
        name = {"mean": "mean", "median": "median", "ema": "exponential moving average"}[self.kind]
        return f"{name} over {self.points} logged points"


def smooth(series: Series, smoothing: Smoothing) -> Series:
    """The smoothed series at the same steps. A value that is not finite propagates to every point that includes it."""
    values, n = series.values, smoothing.points
    if smoothing.kind == "none" or n == 1 or not len(values):
        return series
    if smoothing.kind == "ema":
        keep, total, weight = 1 - 2 / (n + 1), 0.0, 0.0
        smoothed = np.empty_like(values)
        for i, value in enumerate(values):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
            smoothed[i] = total / weight
        return Series(series.steps, smoothed)
    padded = np.concatenate([np.full(n - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, n)
    reduce = np.mean if smoothing.kind == "mean" else np.median
    smoothed = reduce(windows, axis=1)
    for i in range(min(n - 1, len(values))):
        smoothed[i] = reduce(values[: i + 1])
    return Series(series.steps, smoothed)


def require_equal(runs: Sequence[Run], names: Sequence[str], purpose: str) -> Mapping[str, Any]:
    """The configuration values that all runs share. A name that no run has is left out.

    Raises DataError for the first key that differs, with its values and runs: "`train_iters`, which differs: 100 in
    a, b; 200 in c".
    """
    shared: dict[str, Any] = {}
    for name in names:
        by_value: dict[Any, list[str]] = {}
        for run in runs:
            value = run.value(name)
            number = as_number(value)
            by_value.setdefault(repr(value) if number is None else f"{number:g}", []).append(run.name)
        if len(by_value) > 1:
            cases = "; ".join(f"{value} in {_some(names)}" for value, names in by_value.items())
            [first, *_] = max(by_value.values(), key=len)
            most = next(run.value(name) for run in runs if run.name == first)
            raise DataError(
                f"{purpose} needs runs with the same `{name}`, which differs: {cases}; {_selecting(name, most)}"
            )
        value = runs[0].value(name) if runs else None
        if value is not None:
            shared[name] = value
    return shared


def require_same_corpus(runs: Sequence[Run], purpose: str) -> str | None:
    """The SHA-256 of the corpus that all runs read, or None if no run records one.

    Raises DataError that names each corpus and its runs. Losses on different text cannot be compared.
    """
    by_corpus: dict[tuple[str | None, Any], list[str]] = {}
    for run in runs:
        by_corpus.setdefault((run.value(CORPUS), run.value("corpus.bytes")), []).append(run.name)
    if len(by_corpus) > 1:
        cases = "; ".join(f"{describe_corpus(*corpus)} in {_some(names)}" for corpus, names in by_corpus.items())
        most, _ = max(by_corpus, key=lambda corpus: len(by_corpus[corpus]))
        hint = f"; {_selecting(CORPUS, most)}" if most is not None and len({sha for sha, _ in by_corpus}) > 1 else ""
        raise DataError(f"{purpose} needs runs on one corpus, found {len(by_corpus)}: {cases}{hint}")
    return next((sha256 for sha256, _ in by_corpus), None)


def describe_corpus(sha256: str | None, size: int | None = None) -> str:
    """Describe a corpus by its size in bytes, if known, and the first digits of its SHA-256."""
    if sha256 is None:
        return "an unrecorded corpus"
    return (f"{size:,} bytes with SHA-256 " if size else "SHA-256 ") + f"{sha256[:12]}..."


def _selecting(name: str, value: Any) -> str:
    """How to keep only the runs with this value."""
    return f"keep some of them with --where {shlex.quote(f'{name}={value}')}"


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
