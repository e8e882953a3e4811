"""The data keys of the configuration: split, paths and weights, and the errors for bad values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.data.data_utils import build_train_valid_test_datasets, check_vocab, split_documents
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import ConfigError, DataError


def corpus(prefix, documents=100, length=20, token=None):
    """Write documents in which every token is the document's number (or `token`)."""
    with IndexedDatasetBuilder(prefix, "i4") as builder:
        for number in range(documents):
            builder.add_item(np.full(length, number if token is None else token))
            builder.end_document()
        builder.finalize()
    return prefix


def tokens_of(dataset):
    return set(np.concatenate([dataset[i] for i in range(len(dataset))]).tolist())


def build(**keys):
    return build_train_valid_test_datasets(**{"seq_length": 8, "seed": 1, "num_samples": (50, 10, 5)} | keys)


@pytest.mark.parametrize(
    "split, documents, bounds",
    [
        ("969, 30, 1", 1000, (0, 969, 999, 1000)),
        ("969/30/1", 17868, (0, 17314, 17850, 17868)),
        ("949,50,1", 17868, (0, 16957, 17850, 17868)),  # from a public log of Megatron-DeepSpeed
        ("100", 7, (0, 7, 7, 7)),
        ("1,1", 10, (0, 5, 10, 10)),
        ("0,1,0", 10, (0, 0, 10, 10)),
        ("0,1,1", 3, (0, 0, 1, 3)),  # both halves round up to 2: the excess must not make the first negative
    ],
)
def test_split_documents(split, documents, bounds):
    assert split_documents(split, documents) == bounds


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(sum), st.integers(0, 10_000))
def test_split_covers_all_documents_in_order(shares, documents):
    bounds = split_documents(",".join(map(str, shares)), documents)
    assert list(bounds) == sorted(bounds) and (bounds[0], bounds[3]) == (0, documents)
    for first, end, share in zip(bounds, bounds[1:], [*shares, 0, 0], strict=False):
        assert abs((end - first) - documents * share / sum(shares)) <= 2.5


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "0,0,0", "nan,1"])
def test_bad_split(split):
    with pytest.raises(ConfigError, match="split"):
        split_documents(split, 10)


def test_split_of_one_path_by_documents(tmp_path):
    train, valid, test = build(data_path=corpus(tmp_path / "x"), split="80,15,5")
    assert [len(dataset) >= asked for dataset, asked in zip((train, valid, test), (50, 10, 5), strict=True)]
    for dataset, first, end in ((train, 0, 80), (valid, 80, 95), (test, 95, 100)):
        assert tokens_of(dataset) <= set(range(first, end))


def test_no_dataset_if_no_samples_are_requested(tmp_path):
    train, valid, test = build(data_path=corpus(tmp_path / "x", documents=1), num_samples=(50, 0, 0))
    assert len(train) >= 50 and valid is None and test is None


def test_a_split_that_leaves_an_empty_dataset_is_refused(tmp_path):
    path = corpus(tmp_path / "single", documents=1, length=1000)
    with pytest.raises(DataError, match=r"single: split '969, 30, 1' leaves 0 of its 1 documents.*to valid.*change"):
        build(data_path=path, num_samples=(5, 5, 0))


def test_a_split_that_leaves_no_text_to_test_gives_no_test_set(tmp_path):
    train, valid, test = build(data_path=corpus(tmp_path / "x", documents=40))
    assert len(train) >= 50 and len(valid) >= 10 and test is None


def test_separate_paths_are_blended(tmp_path):
    paths = [corpus(tmp_path / str(token), token=token) for token in (1, 2, 3)]
    train, valid, test = build(
        train_data_paths=paths[:2],
        train_data_weights=[3, 1],
        valid_data_paths=paths[2:],
        num_samples=(80, 10, 0),
    )
    first_tokens = [int(train[i][0]) for i in range(80)]
    assert (first_tokens.count(1), first_tokens.count(2)) == (60, 20)
    assert tokens_of(valid) == {3} and test is None


def test_weights_by_number_of_documents(tmp_path):
    paths = [
        corpus(tmp_path / "many", documents=90, token=1),
        corpus(tmp_path / "few", documents=10, token=2),
    ]
    keys = {"train_data_paths": paths, "weight_by_num_documents": True, "num_samples": (100, 0, 0)}
    for alpha, few in ((1.0, 50), (0.0, 90)):
        train, _, _ = build(weighted_sampler_alpha=alpha, **keys)
        assert sum(int(train[i][0]) == 2 for i in range(100)) == few


@pytest.mark.parametrize(
    "keys, error, message",
    [
        ({}, ConfigError, "data-path"),
        ({"data_path": "x", "train_data_paths": ["x"]}, ConfigError, "exclude each other"),
        (
            {"train_data_paths": ["{x}"], "train_data_weights": [1, 2]},
            ConfigError,
            "train-data-weights has 2",
        ),
        ({"train_data_paths": ["{x}"]}, DataError, "valid-data-paths is not set"),
        ({"train_data_paths": ["{x}", "nowhere"]}, DataError, "nowhere.idx does not exist"),
        ({"train_data_paths": ["{x}"], "train_data_weights": [0]}, DataError, "weights"),
    ],
)
def test_inconsistent_keys_are_refused(tmp_path, keys, error, message):
    path = str(corpus(tmp_path / "x"))
    keys = {
        key: [path if v == "{x}" else v for v in value] if isinstance(value, list) else value
        for key, value in keys.items()
    }
    with pytest.raises(error, match=message):
        build(**keys)


def test_data_of_another_tokenizer_is_refused(tmp_path):
    path = corpus(tmp_path / "x", documents=100)
    build(data_path=path, vocab_size=100, split="8,1,1")
    with pytest.raises(DataError, match=r"x\.bin contains token id 99, but the vocabulary has 99"):
        build(data_path=path, vocab_size=99)


def test_check_vocab_checks_all_tokens_if_full(tmp_path):
    tokens = np.zeros(5_000_000, np.uint16)
    tokens[300_000 - 1] = 7  # between the samples
    with IndexedDatasetBuilder(tmp_path / "x", "u2") as builder:
        builder.add_item(tokens)
        builder.finalize()
    indexed = IndexedDataset(tmp_path / "x")
    check_vocab(indexed, 7)
    with pytest.raises(DataError, match="token id 7"):
        check_vocab(indexed, 7, full=True)
