"""Samples of whole documents and their labels, against slow references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.data_utils import build_train_valid_test_datasets
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.data.loader import collate
from megatron.data.sample_order import pack_until_overflow
from megatron.errors import ConfigError, DataError


def write(prefix, documents, dtype="i4"):
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            builder.add_item(np.array(document, dtype))
            builder.end_document()
        builder.finalize()
    return IndexedDataset(prefix)


def make_documents(lengths, counted):
    """Documents of distinct tokens, and their labels: `counted` chooses the last tokens of each that count."""
    documents, labels, position = [], [], 1
    for length, count in zip(lengths, counted, strict=True):
        tokens = list(range(position, position + length))
        documents.append(tokens)
        labels.append([-100] * (length - min(count, length)) + tokens[length - min(count, length) :])
        position += length
    return documents, labels


def packed_by_loop(documents, limit):
    """Slow definition: add documents to a sample until the next one does not fit."""
    samples, current = [], []
    for document in documents:
        if current and len(current) + len(document) > limit:
            samples.append(current)
            current = []
        current = current + document
    return [*samples, current]


def padded(tokens, limit, padding):
    return (tokens[:limit] + [padding] * limit)[:limit]


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), limit=st.integers(2, 20))
def test_runs_of_documents_are_those_of_the_loop(lengths, limit):
    starts = pack_until_overflow(np.array(lengths), limit).tolist()
    documents = [[number] * length for number, length in enumerate(lengths)]
    runs = [sum(documents[a:b], []) for a, b in zip(starts, [*starts[1:], len(lengths)], strict=True)]
    assert runs == packed_by_loop(documents, limit)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 14), min_size=1, max_size=12),
    counted=st.lists(st.integers(0, 14), min_size=12, max_size=12),
    seq_length=st.integers(1, 12),
    packing=st.sampled_from(["unpacked", "pack_until_overflow"]),
    with_labels=st.booleans(),
    allow_chopped=st.booleans(),
)
def test_samples_are_those_of_the_slow_reference(
    lengths, counted, seq_length, packing, with_labels, allow_chopped, tmp_path_factory
):
    """Two epochs: every usable document once in each, with its labels, and padding that does not count."""
    limit, folder = seq_length + 1, tmp_path_factory.mktemp("d")
    texts, labels = make_documents(lengths, counted[: len(lengths)])
    if not with_labels:
        labels = texts
    indexed, of_indexed = write(folder / "text", texts), write(folder / "label", labels)
    usable = [
        number
        for number, length in enumerate(lengths)
        if (length <= limit or allow_chopped) and any(label >= 0 for label in labels[number][:limit])
    ]
    options = {"labels": of_indexed if with_labels else None, "packing": packing, "allow_chopped": allow_chopped}
    arguments = (indexed, np.arange(len(lengths)), 2, seq_length, 5, folder / "cache")
    if not usable or sum(lengths) < 2:
        with pytest.raises(DataError):
            GPTDataset(*arguments, **options)
        return
    dataset = GPTDataset(*arguments, **options)
    assert len(dataset) >= 2
    order = dataset.order.doc_idx.tolist()
    epochs = [order[i : i + len(usable)] for i in range(0, len(order), len(usable))]
    rng, expected = np.random.RandomState(5), []
    for epoch in epochs:
        shuffled = np.array(usable)
        rng.shuffle(shuffled)
        assert epoch == shuffled.tolist()
        for of_documents, padding in ((texts, 0), (labels, -100)):
            chosen = [of_documents[number] for number in epoch]
            samples = packed_by_loop(chosen, limit) if packing == "pack_until_overflow" else chosen
            expected.append([padded(sample, limit, padding) for sample in samples])
    texts_of, labels_of = sum(expected[::2], []), sum(expected[1::2], [])
    found = [dataset[i].tolist() for i in range(len(dataset))]
    assert found == [list(pair) for pair in zip(texts_of, labels_of, strict=True)]


@settings(max_examples=30)
@given(
    packing=st.sampled_from(["packed", "unpacked", "pack_until_overflow"]),
    counts=st.tuples(st.integers(1, 30), st.integers(0, 30)),
)
def test_a_longer_run_starts_like_a_shorter_one(packing, counts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    texts, labels = make_documents([3, 5, 9, 1, 4], [2, 2, 2, 1, 4])
    indexed, of_indexed = write(folder / "text", texts), write(folder / "label", labels)
    short, long = (
        GPTDataset(indexed, np.arange(5), count, 7, 1, folder / "cache", labels=of_indexed, packing=packing)
        for count in (counts[0], sum(counts))
    )
    assert [long[i].tolist() for i in range(len(short))] == [short[i].tolist() for i in range(len(short))]


def test_labels_of_joined_documents_are_those_of_the_same_tokens(tmp_path):
    texts, labels = make_documents([13, 4, 40, 9, 2], [5, 0, 20, 9, 1])
    dataset = GPTDataset(
        write(tmp_path / "text", texts), np.arange(5), 8, 8, 3, labels=write(tmp_path / "label", labels)
    )
    label_of = dict(zip(sum(texts, []), sum(labels, []), strict=True))
    for i in range(len(dataset)):
        tokens, found = dataset[i].tolist()
        assert found == [label_of[token] for token in tokens]


def test_the_cache_of_another_packing_or_of_other_labels_is_not_used(tmp_path):
    texts, labels = make_documents([4, 4, 4, 4], [2, 2, 2, 2])
    indexed = write(tmp_path / "text", texts)
    without = [[-100] * 4, *labels[1:]]  # the first document has no label that counts
    variants = [
        {"packing": packing, "labels": write(tmp_path / f"label{number}", of_texts), "allow_chopped": chopped}
        for packing in ("packed", "unpacked", "pack_until_overflow")
        for number, of_texts in enumerate((labels, without))
        for chopped in (True, False)
    ]

    def contents(options, cache):
        dataset = GPTDataset(indexed, np.arange(4), 3, 8, 1, cache, **options)
        return [dataset[i].tolist() for i in range(len(dataset))]

    shared = [contents(options, tmp_path / "shared") for options in variants]
    assert shared == [contents(options, tmp_path / str(n)) for n, options in enumerate(variants)]
    assert len({str(found) for found in shared}) == 6


def test_documents_of_samples_are_located(tmp_path):
    texts, _ = make_documents([3, 3, 3, 9, 2], [0] * 5)
    dataset = GPTDataset(write(tmp_path / "x", texts), np.arange(5), 3, 8, 1, packing="pack_until_overflow")
    owner = {token: number for number, document in enumerate(texts) for token in document}
    (located,) = dataset.locate(0, 2)
    seen = {owner[token] for i in range(2) for token in dataset[i][0].tolist() if token}
    assert located.documents == tuple(sorted(seen))


def test_a_batch_has_labels_if_its_samples_do(tmp_path):
    texts, labels = make_documents([5, 5], [2, 2])
    text, label = write(tmp_path / "text", texts), write(tmp_path / "label", labels)
    plain = collate([GPTDataset(text, np.arange(2), 2, 4, 1)[i] for i in range(2)])
    assert list(plain) == ["text"] and plain["text"].shape == (2, 5)
    both = collate([GPTDataset(text, np.arange(2), 2, 4, 1, labels=label, packing="unpacked")[i] for i in range(2)])
    assert sorted(both["text"].tolist()) == texts and sorted(map(max, both["label"].tolist())) == [5, 10]


def test_label_files_that_do_not_fit_are_refused(tmp_path):
    texts, labels = make_documents([5, 5], [2, 2])
    for name, documents in (("text", texts), ("label", labels), ("short", [labels[0], labels[1][:-1]])):
        write(tmp_path / name, documents)
    write(tmp_path / "high", [[-100] * 5, [-100, -100, -100, 7, 99]])
    write(tmp_path / "half", texts, "f4")

    def build(labels, **options):
        paths = {
            "train_data_paths": [tmp_path / "text"],
            "train_label_data_paths": [tmp_path / name for name in labels],
        }
        return build_train_valid_test_datasets(
            **paths, seq_length=4, seed=1, num_samples=(4, 0, 0), vocab_size=20, **options
        )

    assert build(["label"])[0][0].shape == (2, 5)
    for names, error, message in [
        (["short"], DataError, "short: its documents are not as long as those of"),
        (["high"], DataError, "token id 99"),
        (["half"], DataError, "float32, not labels"),
        (["label", "label"], ConfigError, "train-label-data-paths has 2 entries for 1"),
    ]:
        with pytest.raises(error, match=message):
            build(names)


def test_no_usable_document_is_an_error_that_says_why(tmp_path):
    texts, labels = make_documents([9, 3], [9, 0])
    with pytest.raises(DataError, match="none of 2 documents .* unpacked: 1 are longer than seq_length . 1 = 5"):
        GPTDataset(
            write(tmp_path / "text", texts),
            np.arange(2),
            1,
            4,
            1,
            labels=write(tmp_path / "label", labels),
            packing="unpacked",
            allow_chopped=False,
        )
