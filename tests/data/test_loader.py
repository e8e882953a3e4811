"""The loader yields the same global batches under every layout, from any start, with any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.data.loader import GlobalBatchSampler, build_loader
from megatron.errors import ConfigError


class Counting:
    """Dataset whose sample i is [i, i + 1, i + 2]."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> np.ndarray:
        return np.arange(index, index + 3)


def steps_of(num_samples, global_batch_size, micro_batch_size, dp_size, consumed):
    """The joined microbatches of all ranks per global step, ordered by microbatch and then by rank."""
    ranks = [
        GlobalBatchSampler(num_samples, global_batch_size, micro_batch_size, rank, dp_size, consumed)
        for rank in range(dp_size)
    ]
    streams = [list(rank) for rank in ranks]
    assert all(len(stream) == len(rank) for stream, rank in zip(streams, ranks, strict=True))
    joined = [sum(microbatches, []) for microbatches in zip(*streams, strict=True)]
    per_step = ranks[0].num_microbatches
    return [sum(joined[i : i + per_step], []) for i in range(0, len(joined), per_step)]


@given(
    micro=st.integers(1, 4),
    dp=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    steps=st.integers(0, 4),
    rest=st.integers(0, 63),
    consumed_steps=st.integers(0, 5),
)
def test_every_layout_covers_the_same_global_batches_in_order(micro, dp, accumulation, steps, rest, consumed_steps):
    batch = micro * dp * accumulation
    num_samples = steps * batch + rest % batch
    expected = [list(range(s * batch, (s + 1) * batch)) for s in range(consumed_steps, steps)]
    consumed = consumed_steps * batch
    assert steps_of(num_samples, batch, micro, dp, consumed) == expected
    assert steps_of(num_samples, batch, batch, 1, consumed) == expected
    assert steps_of(num_samples, batch, 1, batch, consumed) == expected


def test_continues_after_the_consumed_samples_with_another_batch_size():
    assert steps_of(100, 8, 4, 2, 20)[0] == list(range(20, 28))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((64, 12, 4, 0, 2), "12 is not a multiple of train_micro_batch_size_per_gpu 4 x 2"),
        ((64, 8, 0, 0, 1), "positive"),
        ((64, 8, 4, 2, 2), "rank"),
        ((64, 8, 4, 0, 1, -8), "-8"),
    ],
)
def test_inconsistent_sizes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        GlobalBatchSampler(*arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_yields_the_samplers_order_for_any_number_of_workers(num_workers):
    sampler = GlobalBatchSampler(64, 16, 4, 1, 2, consumed_samples=16)
    batches = [batch["text"] for batch in build_loader(Counting(), sampler, num_workers)]
    assert [batch[:, 0].tolist() for batch in batches] == list(sampler)
    assert {(batch.dtype, tuple(batch.shape)) for batch in batches} == {(torch.int64, (4, 3))}


def test_iterating_does_not_change_torchs_random_state():
    before = torch.get_rng_state()
    for _ in build_loader(Counting(), GlobalBatchSampler(64, 16, 4)):
        pass
    assert torch.equal(before, torch.get_rng_state())
