"""Samples: the rows of Megatron-LM's loop, every token once a target per epoch, and correct caches."""

from __future__ import annotations

import multiprocessing
import os
import shutil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron.data import gpt_dataset
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.index_cache import load_arrays
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.data.sample_order import build_order, build_sample_idx
from megatron.errors import DataError


def make_indexed(prefix, lengths, dtype="i4"):
    """Write documents of these lengths in which each token is its own position in the corpus."""
    position = 0
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for length in lengths:
            builder.add_item(np.arange(position, position + length))
            builder.end_document()
            position += length
        builder.finalize()
    return IndexedDataset(prefix)


def sample_idx_by_loop(lengths, seq_length):
    """Slow definition: walk over the documents and fill one sequence of seq_length + 1 tokens at a time."""
    num_samples = (sum(lengths) - 1) // seq_length
    rows, document, offset = [(0, 0)], 0, 0
    while len(rows) <= num_samples:
        wanted = seq_length + 1
        while wanted > lengths[document] - offset:
            wanted -= lengths[document] - offset
            document, offset = document + 1, 0
        offset += wanted - 1  # the last token of a sample is the first of the next
        rows.append((document, offset))
    return rows


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=30), seq_length=st.integers(1, 40))
def test_the_sample_index_equals_that_of_the_loop(lengths, seq_length):
    assume(sum(lengths) >= 1)
    rows = build_sample_idx(np.array(lengths, np.int32), seq_length)
    assert [tuple(row) for row in rows.tolist()] == sample_idx_by_loop(lengths, seq_length)


def test_sample_index_counts_beyond_32_bits():
    lengths = np.full(5, 2**31 - 1, np.int32)
    rows = build_sample_idx(lengths, 2**20)
    where = rows[:, 0].astype(object) * (2**31 - 1) + rows[:, 1]
    assert list(where) == [k * 2**20 for k in range(len(rows))]


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    seq_length=st.integers(1, 16),
    num_samples=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_order_shuffles_epochs_one_by_one(lengths, seq_length, num_samples, seed):
    """Compare with a direct implementation of the rules. One epoch is Megatron-LM's: documents, then samples."""
    assume(sum(lengths) >= 2)
    documents = np.arange(len(lengths), dtype=np.int32)
    order = build_order(np.array(lengths, np.int32), documents, num_samples, seq_length, seed)
    rng = np.random.RandomState(seed)

    def shuffled(values):
        values = np.array(values, np.int64)
        rng.shuffle(values)
        return values.tolist()

    doc_idx, shuffle_idx, tokens = [], [], 0
    while not doc_idx or len(shuffle_idx) < num_samples:
        doc_idx += shuffled(documents)
        tokens += sum(lengths)
        shuffle_idx += shuffled(range(len(shuffle_idx), (tokens - 1) // seq_length))
    assert order.doc_idx.tolist() == doc_idx
    assert order.shuffle_idx.tolist() == shuffle_idx


def test_one_epoch_is_ordered_as_ever():
    """Figures of the order before epochs were shuffled one by one."""
    order = build_order(np.array([3, 5, 4, 6], np.int32), np.arange(4, dtype=np.int32), 8, 2, seed=1)
    assert order.doc_idx.tolist() == [3, 2, 0, 1]
    assert order.shuffle_idx.tolist() == [2, 5, 6, 4, 0, 3, 1, 7]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=10),
    seq_length=st.integers(1, 16),
    counts=st.tuples(st.integers(1, 80), st.integers(0, 80)),
)
def test_a_longer_run_reads_what_the_shorter_one_does_first(lengths, seq_length, counts, tmp_path_factory):
    assume(sum(lengths) >= 2)
    indexed = make_indexed(tmp_path_factory.mktemp("d") / "x", lengths)
    short, long = (
        GPTDataset(indexed, np.arange(len(lengths)), count, seq_length, seed=1) for count in (counts[0], sum(counts))
    )
    assert contents(long)[: len(short)] == contents(short)


def test_in_each_epoch_every_token_is_a_target_once(tmp_path):
    """65 tokens and samples of 8 targets, so that 64 targets of an epoch are its samples, and the rest follows."""
    indexed = make_indexed(tmp_path / "x", [13, 1, 40, 9, 2])
    dataset = GPTDataset(indexed, np.arange(5), 24, 8, seed=3)
    first = np.concatenate([dataset[i][1:] for i in range(8)])
    assert sorted(first.tolist()) == sorted(set(range(65)) - {int(indexed[int(dataset.order.doc_idx[0])][0])})
    seen = np.bincount(np.concatenate([dataset[i][1:] for i in range(24)]), minlength=65)
    assert set(seen.tolist()) <= {2, 3}


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=10),
    seq_length=st.integers(1, 16),
    num_samples=st.integers(1, 40),
)
def test_samples_are_the_shuffled_documents_cut_with_one_token_of_overlap(
    lengths, seq_length, num_samples, tmp_path_factory
):
    assume(sum(lengths) >= 2)
    indexed = make_indexed(tmp_path_factory.mktemp("d") / "x", lengths)
    dataset = GPTDataset(indexed, np.arange(len(lengths)), num_samples, seq_length, seed=1)
    assert len(dataset) >= num_samples
    stream = np.concatenate([indexed[d] for d in dataset.order.doc_idx])
    for i in range(len(dataset)):
        start = int(dataset.order.shuffle_idx[i]) * seq_length
        sample = dataset[i]
        assert sample.dtype == np.int64 and sample.shape == (seq_length + 1,)
        assert sample.tolist() == stream[start : start + seq_length + 1].tolist()
    assert sorted(dataset.order.shuffle_idx) == list(range(len(dataset)))


def test_an_epoch_shows_every_token_but_the_first_and_a_rest_as_a_target_once(tmp_path):
    indexed = make_indexed(tmp_path / "x", [13, 1, 40, 9, 2])
    dataset = GPTDataset(indexed, np.arange(5), 8, 8, seed=3)
    targets = np.concatenate([dataset[i][1:] for i in range(len(dataset))])
    assert len(targets) == 64 == len(set(targets.tolist()))


def test_only_the_given_documents_are_read(tmp_path):
    indexed = make_indexed(tmp_path / "x", [50] * 10)
    dataset = GPTDataset(indexed, np.array([2, 3, 4]), 100, 7, seed=0)
    seen = np.concatenate([dataset[i] for i in range(len(dataset))])
    assert (seen.min(), seen.max()) == (100, 249)
    with pytest.raises(IndexError):
        GPTDataset(indexed, np.array([10]), 1, 7, seed=0)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_the_seed_determines_the_order(tmp_path):
    indexed = make_indexed(tmp_path / "x", [50] * 10)
    first, again, other = (
        [GPTDataset(indexed, np.arange(10), 40, 7, seed, tmp_path / "cache")[i].tolist() for i in range(40)]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_too_little_text(tmp_path):
    for name, lengths in [("none", []), ("empty", [0, 0]), ("one", [1])]:
        indexed = make_indexed(tmp_path / name, lengths)
        with pytest.raises(DataError, match="fewer than 2 tokens"):
            GPTDataset(indexed, np.arange(len(lengths)), 1, 4, seed=0)


def test_float_data_is_refused(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "x", "f4") as builder:
        builder.add_item([0.5, 1.5])
        builder.finalize()
    with pytest.raises(DataError, match="float32, not token ids"):
        GPTDataset(IndexedDataset(tmp_path / "x"), np.arange(1), 1, 1, seed=0)


# --- the cache of indices ---


def build(indexed, documents=6, num_samples=20, seq_length=5, seed=1, cache_dir=None):
    return GPTDataset(indexed, np.arange(documents), num_samples, seq_length, seed, cache_dir)


def contents(dataset):
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_a_second_build_loads_the_order_from_the_cache(tmp_path, monkeypatch):
    indexed = make_indexed(tmp_path / "x", [9] * 8)
    first = build(indexed)
    assert len(list((tmp_path / "index_cache").iterdir())) == 1
    monkeypatch.setattr(gpt_dataset, "build_order", lambda *_: pytest.fail("built again"))
    assert contents(build(indexed)) == contents(first)


@pytest.mark.parametrize(
    "change",
    [{"documents": 7}, {"num_samples": 21}, {"seq_length": 6}, {"seed": 2}],
    ids=lambda c: next(iter(c)),
)
def test_cache_of_other_arguments_is_not_used(tmp_path, change):
    indexed = make_indexed(tmp_path / "x", [9] * 8)
    build(indexed)
    with_cache = contents(build(indexed, **change))
    assert with_cache == contents(build(indexed, cache_dir=tmp_path / "fresh", **change))


def test_cache_of_data_that_was_replaced_is_not_used(tmp_path):
    build(make_indexed(tmp_path / "x", [9] * 8))
    replaced = make_indexed(tmp_path / "x", [8, 10] * 4)  # the same number of tokens in documents of other lengths
    assert contents(build(replaced)) == contents(build(replaced, cache_dir=tmp_path / "fresh"))


def test_cache_of_other_documents_of_the_same_lengths_is_not_used(tmp_path):
    indexed = make_indexed(tmp_path / "x", [9] * 8)
    for first in (0, 2):  # a cache shared by the two would show the documents of train in valid
        dataset = GPTDataset(indexed, np.arange(first, first + 6), 20, 5, seed=1)
        assert min(min(sample) for sample in contents(dataset)) == 9 * first


def test_a_damaged_cache_is_built_again(tmp_path):
    indexed = make_indexed(tmp_path / "x", [9] * 8)
    expected = contents(build(indexed))
    (folder,) = (tmp_path / "index_cache").iterdir()
    for name in ("doc_idx", "sample_idx", "shuffle_idx"):
        for damage in (lambda path: path.unlink(), lambda path: os.truncate(path, path.stat().st_size - 3)):
            damage(folder / f"{name}.npy")
            assert contents(build(indexed)) == expected
            assert load_arrays(folder, gpt_dataset._INDICES) is not None, "not repaired"
    assert list((tmp_path / "index_cache").iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path):
    indexed = make_indexed(tmp_path / "x", [9] * 8)
    expected = contents(build(indexed))
    shutil.rmtree(tmp_path / "index_cache")
    (tmp_path / "index_cache").write_text("a file where the folder should be")
    assert contents(build(indexed)) == expected


def _build_in_process(prefix, barrier, results):
    indexed = IndexedDataset(prefix)
    barrier.wait(60)
    results.put(contents(build(indexed)))


def test_several_processes_can_build_at_once(tmp_path):
    expected = contents(build(make_indexed(tmp_path / "x", [9] * 8)))
    shutil.rmtree(tmp_path / "index_cache")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_build_in_process, args=(tmp_path / "x", barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [expected] * 4
    for process in processes:
        process.join(60)
    assert len(list((tmp_path / "index_cache").iterdir())) == 1
