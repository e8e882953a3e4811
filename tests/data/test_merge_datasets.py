"""tools/datasets/merge_datasets.py: GPT-NeoX's flags, all documents in the order of names, and its mistakes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import DataError
from muneox.commands.merge_datasets import main
from tests.test_packaging import ROOT


def write(prefix, documents, dtype="u2"):
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            builder.add_documents(np.array(document), [len(document)])
        builder.finalize()


def test_merging_by_its_script(tmp_path):
    write(tmp_path / "parts" / "b", [[4, 5], [6]])
    write(tmp_path / "parts" / "a.v2", [[1, 2, 3]])
    script = str(ROOT / "tools/datasets/merge_datasets.py")
    command = [sys.executable, script, "--input", "parts", "--output-prefix", "merged"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "2 data sets, 6 tokens" in done.stdout, done.stderr
    merged = IndexedDataset(tmp_path / "merged")
    assert [merged[i].tolist() for i in range(len(merged))] == [[1, 2, 3], [4, 5], [6]]
    assert merged.doc_idx.tolist() == [0, 1, 2, 3] and merged.dtype == "u2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "a.idx").unlink(), "a.bin has no a.idx"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no .bin and .idx files"),
        (lambda folder: write(folder / "b", [[1]], "i4"), "dtype int32 cannot be merged into uint16"),
        (lambda folder: folder.rename(folder.parent / "other"), "is not a folder"),
    ],
)
def test_mistakes_leave_no_output(tmp_path, change, message):
    write(tmp_path / "parts" / "a", [[1]])
    change(tmp_path / "parts")
    with pytest.raises(DataError, match=message):
        main(["--input", str(tmp_path / "parts"), "--output-prefix", str(tmp_path / "out" / "m")])
    assert not list(tmp_path.glob("out/*"))


def test_the_output_cannot_be_an_input(tmp_path):
    write(tmp_path / "parts" / "a", [[1]])
    with pytest.raises(DataError, match="is one of the data sets to merge"):
        main(["--input", str(tmp_path / "parts"), "--output-prefix", str(tmp_path / "parts" / "a")])
