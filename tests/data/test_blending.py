"""Blends follow Megatron-LM's rule and are close to the weights at every prefix."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.data.blend_order import blend_order, compiled_order, order_by_parts
from megatron.data.blending import BlendedDataset, blend_index, normalize_weights, weights_by_num_documents
from megatron.errors import DataError

weight_lists = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(weights=weight_lists, num_samples=st.integers(0, 200))
def test_each_sample_goes_to_the_dataset_furthest_behind(weights, num_samples):
    chosen, within = blend_index(weights, num_samples)
    shares = np.array(normalize_weights(weights))
    counts = np.zeros(len(weights))
    for i in range(num_samples):
        assert chosen[i] == np.argmax(shares * max(i, 1) - counts)
        assert within[i] == counts[chosen[i]]
        counts[chosen[i]] += 1
        assert np.abs(counts - shares * (i + 1)).max() < len(weights)
    assert (counts <= np.ceil(shares * num_samples * 1.005)).all(), "a dataset gives more than Megatron-LM's share"


def by_a_loop(shares: list[float], num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Megatron-LM's rule, one sample after another in Python's floats."""
    counts, chosen, within = [0] * len(shares), [], []
    for i in range(num_samples):
        deficits = [share * max(i, 1) - count for share, count in zip(shares, counts, strict=True)]
        furthest = deficits.index(max(deficits))
        chosen.append(furthest)
        within.append(counts[furthest])
        counts[furthest] += 1
    return np.array(chosen), np.array(within)


def blends() -> dict[str, list[float]]:
    """Weights with and without ties, few and many, equal and far apart."""
    rng = np.random.default_rng(0)
    return {
        "one": [1],
        "two": [0.7, 0.3],
        "equal": [1] * 7,
        "whole numbers": [1, 2, 3, 4],
        "five": rng.random(5).tolist(),
        "far apart": [1, 1e-3, 1e-6],
        "many equal": [1] * 40,
        "many whole numbers": list(range(1, 60)),
        "one large of many": [1] * 99 + [100],
        "many": rng.lognormal(0, 2, 100).tolist(),
    }


def empty(length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(length, -1, np.int16), np.full(length, -1, np.int64)


@pytest.mark.parametrize("name", blends())
def test_both_fast_ways_give_the_order_of_the_loop(name):
    shares = normalize_weights(blends()[name])
    expected = by_a_loop(shares, 5000)
    for parts, length in ((1, 3000), (7, 500), (33, 99), (None, None)):
        order = empty(5000)
        order_by_parts(shares, *order, parts=parts, length=length)
        for part, whole in zip(order, expected, strict=True):
            np.testing.assert_array_equal(part, whole, err_msg=f"{parts} parts of {length}")
    compiled = compiled_order()
    if compiled is None:
        pytest.skip("this machine has no C compiler")
    counts, scratch, names = np.zeros(len(shares)), np.empty(4 * len(shares)), np.empty(len(shares), np.int16)
    order, weights = empty(5000), np.array(shares)
    for first, end in ((0, 1), (1, 1701), (1701, 5000)):
        part = [whole[first:end] for whole in order]
        compiled(weights, counts, scratch, names, len(shares), first, end - first, *part)
    for part, whole in zip(order, expected, strict=True):
        np.testing.assert_array_equal(part, whole, err_msg="compiled")


def test_parts_that_start_from_wrong_counts_are_computed_again(monkeypatch):
    monkeypatch.setattr(
        "megatron.data.blend_order._close_counts", lambda shares, at: np.full((len(at), len(shares)), 5.0)
    )
    for name in ("five", "many equal", "many"):
        shares = normalize_weights(blends()[name])
        order = empty(3000)
        order_by_parts(shares, *order, parts=10, length=100)
        for part, whole in zip(order, by_a_loop(shares, 3000), strict=True):
            np.testing.assert_array_equal(part, whole)


def test_blend_without_a_compiler_has_the_same_order(monkeypatch):
    monkeypatch.setattr("megatron.data.blend_order._WORTH_COMPILING", 0)
    with_compiler, done = blend_index([3, 1, 2], 5000), []
    compiled_order.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        assert compiled_order() is None
        without = empty(5000)
        blend_order([1 / 2, 1 / 6, 1 / 3], *without, on_progress=done.append)
    finally:
        compiled_order.cache_clear()
    assert done[-1] == 5000
    for part, whole in zip(without, with_compiler, strict=True):
        np.testing.assert_array_equal(part, whole)


@given(weights=weight_lists, lengths=st.tuples(st.integers(0, 100), st.integers(0, 100)))
def test_a_longer_blend_starts_with_the_shorter(weights, lengths):
    short, long = sorted(lengths)
    for part, whole in zip(blend_index(weights, short), blend_index(weights, long), strict=True):
        assert part.tolist() == whole[:short].tolist()


def test_dataset_of_weight_zero_is_never_chosen():
    assert 0 not in blend_index([0.0, 1.0, 1.0], 100)[0]


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, float("nan")], [float("inf")], []])
def test_bad_weights(weights):
    with pytest.raises(DataError, match="weights"):
        normalize_weights(weights)


class Constant:
    """Fake dataset whose sample i is [value, i]."""

    def __init__(self, value: int, length: int) -> None:
        self.value, self.length = value, length
        self.indexed = type("Indexed", (), {"prefix": f"corpus{value}"})

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[int]:
        return [self.value, index]


def test_blended_dataset_gives_the_samples_of_each_in_order():
    blend = BlendedDataset([Constant(0, 100), Constant(1, 100)], [3, 1], 80)
    samples = [blend[i] for i in range(len(blend))]
    assert [s[1] for s in samples if s[0] == 0] == list(range(60))
    assert [s[1] for s in samples if s[0] == 1] == list(range(20))


def test_blend_of_datasets_that_are_too_short_or_too_many():
    with pytest.raises(DataError, match="corpus1: 19 samples, but the blend needs 20"):
        BlendedDataset([Constant(0, 100), Constant(1, 19)], [3, 1], 80)
    with pytest.raises(DataError, match="1 data weights for 2"):
        BlendedDataset([Constant(0, 1), Constant(1, 1)], [1], 1)


def test_weights_by_number_of_documents():
    # by hand: p = (.9, .1); alpha 1: (.9 * .1, .1 * .9) -> equal; alpha 0: (.5 * .1, .5 * .9)
    assert weights_by_num_documents([900, 100], 1.0) == pytest.approx([0.5, 0.5])
    assert weights_by_num_documents([900, 100], 0.0) == pytest.approx([0.1, 0.9])
    # p = (.5, .3, .2), alpha .5: sqrt(p) * (1 - p), normalized
    raw = np.sqrt([0.5, 0.3, 0.2]) * [0.5, 0.7, 0.8]
    assert weights_by_num_documents([50, 30, 20], 0.5) == pytest.approx((raw / raw.sum()).tolist())
    assert weights_by_num_documents([7]) == [1.0]
    with pytest.raises(DataError, match="no documents"):
        weights_by_num_documents([0, 0])


def test_a_cached_blend_is_mapped_and_a_damaged_one_built_again(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr("megatron.data.blending.blend_order", lambda *args: built.append(1) or blend_order(*args))
    datasets = [Constant(0, 1000), Constant(1, 1000)]

    def blend(weights=(3, 1), num_samples=400):
        made = BlendedDataset(datasets, weights, num_samples, tmp_path / "cache")
        return [pickle.loads(pickle.dumps(made._stored))()[0]["dataset_index"].tolist(), made.sample_index.tolist()]

    first = blend()
    assert first == [part.tolist() for part in blend_index([3, 1], 400)] and blend() == first
    assert len(built) == 2, "one of them by blend_index"
    others = [blend(num_samples=401), blend((1, 3)), blend((1, 2))]
    assert len(built) == 5 and all(other != first for other in others)
    for path in (tmp_path / "cache").glob("*/sample_index.npy"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert blend() == first and len(built) == 6
    (tmp_path / "not a folder").write_text("")
    in_memory = BlendedDataset(datasets, (3, 1), 400, tmp_path / "not a folder")
    assert in_memory.sample_index.tolist() == first[1]
