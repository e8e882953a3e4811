"""Token files: the format byte for byte, round trips, and bad files."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.indexed_dataset import (
    DTYPES,
    IndexedDataset,
    IndexedDatasetBuilder,
    best_fitting_dtype,
)
from megatron.errors import DataError

GOLDEN_IDX = bytes.fromhex(
    "4d4d494449445800000100000000000000080200000000000000030000000000000003000000020000000000000000000000"
    "0600000000000000000000000000000001000000000000000200000000000000"
)


def write(prefix: Path, documents: list[list[int]], dtype: str = "u2") -> Path:
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            builder.add_item(document)
            builder.end_document()
        builder.finalize()
    return prefix


def test_files_are_byte_for_byte_the_published_format(tmp_path):
    prefix = write(tmp_path / "golden", [[1, 2, 3], [4, 5]])
    assert prefix.with_suffix(".idx").read_bytes() == GOLDEN_IDX
    assert prefix.with_suffix(".bin").read_bytes() == bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.bin", "golden.idx"]


integer_dtypes = st.sampled_from([dtype for dtype in DTYPES.values() if dtype.kind in "iu"])


@settings(max_examples=40)
@given(data=st.data(), dtype=integer_dtypes)
def test_round_trip(data, dtype, tmp_path_factory):
    limits = np.iinfo(dtype)
    sequence = st.lists(st.integers(limits.min, limits.max), max_size=6)
    documents = data.draw(st.lists(st.lists(sequence, max_size=3), max_size=6))
    prefix = tmp_path_factory.mktemp("round") / "trip"
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            for item in document:
                builder.add_item(np.array(item, dtype))
            builder.end_document()
        builder.finalize()
    indexed = IndexedDataset(prefix)
    flat = [item for document in documents for item in document]
    assert indexed.dtype == dtype
    assert [indexed[i].tolist() for i in range(len(indexed))] == flat
    assert indexed.sizes.tolist() == [len(item) for item in flat]
    assert indexed.doc_idx.tolist() == np.cumsum([0] + [len(document) for document in documents]).tolist()
    for i, item in enumerate(flat):
        assert indexed.get(i, offset=len(item) // 2).tolist() == item[len(item) // 2 :]
        assert indexed.get(i, offset=0, length=len(item) // 2).tolist() == item[: len(item) // 2]
    copy = pickle.loads(pickle.dumps(indexed))
    assert [copy[i].tolist() for i in range(len(copy))] == flat


def test_pickle_holds_no_tokens(tmp_path):
    write(tmp_path / "x", [list(range(60_000))])
    assert len(pickle.dumps(IndexedDataset(tmp_path / "x"))) < 1000


def test_reading_beyond_a_sequence_is_an_error(tmp_path):
    indexed = IndexedDataset(write(tmp_path / "x", [[1, 2, 3], [4, 5]]))
    for arguments in [(0, 1, 3), (0, 4), (0, -1, 2), (2,)]:
        with pytest.raises(IndexError):
            indexed.get(*arguments)


def test_a_prefix_can_have_a_suffix(tmp_path):
    write(tmp_path / "a.b", [[7]])
    assert (tmp_path / "a.b.bin").is_file()
    for name in ("a.b", "a.b.bin", "a.b.idx"):
        assert IndexedDataset(tmp_path / name)[0].tolist() == [7]


def test_merge_appends_documents(tmp_path):
    first, second = write(tmp_path / "1", [[1], [2, 3]]), write(tmp_path / "2", [[4, 5, 6], []])
    with IndexedDatasetBuilder(tmp_path / "all", "u2") as builder:
        builder.merge(first)
        builder.merge(second)
        builder.finalize()
    whole = write(tmp_path / "whole", [[1], [2, 3], [4, 5, 6], []])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"all{suffix}").read_bytes() == whole.with_suffix(suffix).read_bytes()
    with IndexedDatasetBuilder(tmp_path / "wide", "i4") as builder, pytest.raises(DataError, match="uint16"):
        builder.merge(first)


# --- bad input ---


def test_a_missing_file_is_named_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.idx does not exist.*python prepare_data\.py"):
        IndexedDataset(tmp_path / "nowhere")
    prefix = write(tmp_path / "half", [[1]])
    prefix.with_suffix(".bin").unlink()
    with pytest.raises(DataError, match=r"half\.bin does not exist"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_every_truncation_is_detected_at_open(tmp_path, suffix):
    prefix = write(tmp_path / "x", [[1, 2, 3], [4, 5]])
    path = prefix.with_suffix(suffix)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"x\{suffix}"):
            IndexedDataset(prefix)
    path.write_bytes(content + b"\0\0")
    with pytest.raises(DataError, match=rf"x\{suffix}"):
        IndexedDataset(prefix)


def test_every_changed_byte_of_an_index_is_detected(tmp_path):
    """A changed index must not yield tokens of another length or place."""
    prefix = write(tmp_path / "x", [[1, 2, 3], [4, 5]])
    path = prefix.with_suffix(".idx")
    content = path.read_bytes()
    forgiven = []
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x81]) + content[position + 1 :])
        try:
            IndexedDataset(prefix)
            forgiven.append(position)
        except DataError as error:
            assert "x." in str(error)
    assert forgiven == []


@pytest.mark.parametrize(
    "offset, value, message",
    [
        (0, b"X", "magic"),
        (9, b"\x02", "version 2"),
        (17, b"\x63", "code 99"),
        (34, b"\xff\xff\xff\xff", "negative"),
    ],
)
def test_the_message_names_the_problem(tmp_path, offset, value, message):
    path = write(tmp_path / "x", [[1, 2, 3], [4, 5]]).with_suffix(".idx")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        IndexedDataset(path)


def test_the_document_index_must_increase(tmp_path):
    path = write(tmp_path / "x", [[1], [2], [3]]).with_suffix(".idx")
    content = bytearray(path.read_bytes())
    content[-24:-8] = np.array([2, 1], "<i8").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="document index"):
        IndexedDataset(path)


@pytest.mark.parametrize("vocab_size, name", [(256, "uint16"), (65499, "uint16"), (65500, "int32"), (200_000, "int32")])
def test_best_fitting_dtype(vocab_size, name):
    assert best_fitting_dtype(vocab_size).name == name


def test_vocabulary_too_large_for_the_dtype(tmp_path):
    with pytest.raises(DataError, match="70000 tokens does not fit dtype uint16"):
        IndexedDatasetBuilder(tmp_path / "x", "u2", vocab_size=70_000)
    IndexedDatasetBuilder(tmp_path / "x", "u2", vocab_size=65_536).abort()
    with IndexedDatasetBuilder(tmp_path / "x", "u2") as builder:
        for bad in ([1, 65_536], [-1]):
            with pytest.raises(DataError, match=f"{bad[-1]} does not fit"):
                builder.add_item(bad)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_keeps_the_old_files(tmp_path):
    prefix = write(tmp_path / "x", [[1, 2, 3]])
    with pytest.raises(KeyboardInterrupt), IndexedDatasetBuilder(prefix, "u2") as builder:
        builder.add_item([9] * 100_000)
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]
    assert IndexedDataset(prefix)[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("tokens", [50_000, 4_000_000])  # fails in finalize, and in add_item
def test_a_full_disk_keeps_the_old_files(tmp_path, tokens):
    prefix = write(tmp_path / "x", [[1, 2, 3]])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(DataError, match=r"x: cannot write"):
            with IndexedDatasetBuilder(prefix, "u2") as builder:
                for _ in range(0, tokens, 50_000):
                    builder.add_item([9] * 50_000)
                builder.finalize()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]
    assert IndexedDataset(prefix)[0].tolist() == [1, 2, 3]


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        IndexedDatasetBuilder(tmp_path / "file" / "x", "u2")
