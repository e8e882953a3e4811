"""Reading training runs, one way for all tools: wandb offline folders and its API, metrics.jsonl, TensorBoard, CSV."""

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
