"""More data files than file descriptors. The limit is that of a real process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.data.open_files import Lazy
from megatron.errors import DataError

SCRIPT = """
import os, resource, sys
from megatron.data.data_utils import build_train_valid_test_datasets
folder, files, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
train, _, _ = build_train_valid_test_datasets(
    train_data_paths=[f"{folder}/c{i}" for i in range(files)], seq_length=8, seed=1, num_samples=(4 * files, 0, 0)
)
assert all(len(train[i]) == 9 for i in range(len(train)))
print(len(os.listdir("/proc/self/fd")))
"""


def write(prefix: Path) -> Path:
    with IndexedDatasetBuilder(prefix, "i4") as builder:
        for document in range(10):
            builder.add_item(np.arange(12) + document)
            builder.end_document()
        builder.finalize()
    return prefix


def test_more_data_files_than_descriptors(tmp_path: Path) -> None:
    write(tmp_path / "c0")
    for number in range(1, 80):
        for suffix in (".bin", ".idx"):
            shutil.copy(tmp_path / f"c0{suffix}", tmp_path / f"c{number}{suffix}")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "80", "64"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= 64


def test_the_values_that_were_used_last_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron.data.open_files.most_open", lambda: 2)
    opened: list[str] = []

    def lazy(name: str) -> Lazy[str]:
        def open_value() -> str:
            opened.append(name)
            return name

        return Lazy(open_value)

    first, second, third = lazy("a"), lazy("b"), lazy("c")
    assert [first(), second(), first(), third()] == ["a", "b", "a", "c"]
    assert opened == ["a", "b", "c"]
    assert (first(), second()) == ("a", "b")  # the first one was used after the second
    assert opened == ["a", "b", "c", "b"]


def test_files_that_were_replaced_while_closed_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron.data.open_files.most_open", lambda: 1)
    first, second = (IndexedDataset(write(tmp_path / name)) for name in ("first", "second"))
    assert second[0].tolist() == list(range(12))
    with IndexedDatasetBuilder(tmp_path / "first", "i4") as builder:
        builder.add_item([1, 2, 3])
        builder.finalize()
    with pytest.raises(DataError, match="first: its files were truncated or replaced while in use"):
        first[0]
