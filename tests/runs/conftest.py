"""Fixtures that write runs as metrics.jsonl."""

from __future__ import annotations

import json

import pytest

HEADER = {
    "config": {"hidden_size": 64, "train_iters": 20, "optimizer": {"params": {"lr": 1e-3}}, "wandb_group": "g"},
    "model": {"hidden_size": 64, "params": 1000},
    "mup": {"use_mup": True, "width_mult": 2.0},
    "train_batch_size": 4,
    "seq_length": 8,
}


@pytest.fixture
def write_jsonl(tmp_path):
    """write_jsonl(name, records, end, **header_changes) writes a metrics.jsonl and returns its path."""

    def write(name, records, end="\n", **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(line) for line in ({**HEADER, **changes}, *records)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + end)
        return folder / "metrics.jsonl"

    return write


@pytest.fixture
def header():
    return HEADER
