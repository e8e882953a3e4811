"""The fingerprint of a corpus depends on every byte and not on file names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron.data import fingerprint
from megatron.data.fingerprint import corpus_fingerprint
from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.errors import DataError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import data_prefixes
from megatron.neox_arguments.resolve.files import data_config


def make(prefix: Path, documents: list[list[int]]) -> str:
    builder = IndexedDatasetBuilder(prefix, np.uint16)
    for document in documents:
        builder.add_item(np.array(document))
        builder.end_document()
    builder.finalize()
    return str(prefix)


def test_sizes_and_contents_of_both_files_in_order(tmp_path: Path) -> None:
    first = make(tmp_path / "a", [[1, 2, 3], [4, 5]])
    digest, total = hashlib.sha256(), 0
    for suffix in (".bin", ".idx"):
        content = Path(first + suffix).read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
        total += len(content)
    assert corpus_fingerprint([first]) == {"bytes": total, "sha256": digest.hexdigest()}
    assert corpus_fingerprint([make(tmp_path / "another name", [[1, 2, 3], [4, 5]])]) == corpus_fingerprint([first])


def test_different_corpora_have_different_fingerprints(tmp_path: Path) -> None:
    first = make(tmp_path / "a", [[1, 2, 3], [4, 5]])
    others = [
        [make(tmp_path / "token", [[1, 2, 3], [4, 6]])],
        [make(tmp_path / "document", [[1, 2], [3, 4, 5]])],  # the same .bin
        [first, first],
        [],
    ]
    found = {corpus_fingerprint(prefixes)["sha256"] for prefixes in [[first], *others]}
    assert len(found) == 5


def test_a_large_file_is_sampled_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_BLOCK", 16)
    monkeypatch.setattr(fingerprint, "_BLOCKS", 4)
    prefix = make(tmp_path / "a", [list(range(500))])
    before = corpus_fingerprint([prefix])
    content = bytearray(Path(prefix + ".bin").read_bytes())
    for place, seen in ((0, True), (len(content) - 1, True), (100, False), ((len(content) - 16) // 3, True)):
        content[place] ^= 1
        Path(prefix + ".bin").write_bytes(content)
        assert (corpus_fingerprint([prefix]) != before) == seen, place
        content[place] ^= 1
    Path(prefix + ".bin").write_bytes(content)
    assert corpus_fingerprint([prefix]) == before


def test_all_prefixes_of_a_run_count() -> None:
    def prefixes(**keys: Any) -> list[str]:
        args = NeoXArgs.from_dict({"seq_length": 8, "max_position_embeddings": 8, **keys}, world_size=1)
        assert data_config(args).prefixes == data_prefixes(args)
        return data_prefixes(args)

    assert prefixes(data_path="corpus") == ["corpus"]
    assert prefixes(train_data_paths=["a", "b"], valid_data_paths=["c"]) == ["a", "b", "c"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.bin does not exist: make the default corpus"):
        corpus_fingerprint([tmp_path / "absent"])
