"""Reads training runs from wandb offline folders, the wandb API, metrics.jsonl, TensorBoard and CSV files."""

from muneox.runs.align import (
    CORPUS,
    Smoothing,
    at_step,
    at_tokens,
    common_steps,
    describe_corpus,
    last,
    require_equal,
    require_same_corpus,
    smooth,
    tokens_of,
)
from muneox.runs.run import Run, Series, State, as_number, near
from muneox.runs.sources import read_runs

__all__ = [
    "CORPUS",
    "Run",
    "Series",
    "Smoothing",
    "State",
    "as_number",
    "at_step",
    "at_tokens",
    "common_steps",
    "describe_corpus",
    "last",
    "near",
    "read_runs",
    "require_equal",
    "require_same_corpus",
    "smooth",
    "tokens_of",
]
