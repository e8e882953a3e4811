"""Write the results of an evaluation: a JSON file, the run's metrics and wandb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from megatron.files import replacing


def results_path(prefix: str, now: datetime) -> Path:
    """`<prefix>_eval_results_<time>.json`, the name that GPT-NeoX gives the file."""
    name = f"{prefix}_" if prefix and not prefix.endswith("/") else prefix
    return Path(f"{name}eval_results_{now:%m-%d-%Y-%H-%M-%S}.json")


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Raises DataError if the file cannot be written."""
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with replacing(path.absolute()) as temporary:
            temporary.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"eval_results_prefix: {path} cannot be written: {error.strerror}") from error


def record_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Flat record for the run's metrics: `eval/valid/loss`, `eval/<task>/<metric>`."""
    record = {f"eval/valid/{name}": value for name, value in results.get("valid", {}).items()}
    for task, metrics in results.get("tasks", {}).get("results", {}).items():
        for name, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len":
                record[f"eval/{task}/{name.removesuffix(',none')}"] = value
    return record


def table(record: Mapping[str, float]) -> str:
    """One line per value."""
    width = max(map(len, record), default=0)
    return "\n".join(f"{name.removeprefix('eval/'):{width}} {value:.4f}" for name, value in record.items())
