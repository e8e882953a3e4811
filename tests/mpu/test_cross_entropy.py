"""Vocabulary-parallel cross-entropy against torch's cross-entropy of the whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron.mpu import (
    SINGLE,
    Communicator,
    Shard,
    count_communication,
    cross_entropy_and_logsumexp,
    shard,
    vocab_parallel_cross_entropy,
)
from tests.mpu.distributed import run
from tests.mpu.parallel import assert_near, assert_replicated, gathered, tensor_group

BATCH, LENGTH, PADDED = 3, 5, 24
COLUMNS = Shard(2)


def _check(group: Communicator, vocab_size: int, z_loss: float, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    full = (scale * torch.randn(BATCH, LENGTH, PADDED, generator=generator)).to(dtype)
    full[..., vocab_size:] = 1e4  # padding would dominate if it were not excluded
    labels = torch.randint(vocab_size, (BATCH, LENGTH), generator=generator)
    labels[0, :2] = torch.tensor([0, vocab_size - 1])
    weights = torch.rand(BATCH, LENGTH, generator=generator)  # a loss mask: each token has its own weight

    reference = full.clone().requires_grad_()
    kept = reference[..., :vocab_size].float()
    losses = F.cross_entropy(kept.flatten(0, 1), labels.flatten(), reduction="none").view(BATCH, LENGTH)
    losses = losses + z_loss * kept.logsumexp(-1).square()
    (losses * weights).sum().backward()

    logits = shard(full, COLUMNS, group.rank, group.size).clone().requires_grad_()
    before = logits.detach().clone()
    with count_communication() as forward:
        ours = vocab_parallel_cross_entropy(logits, labels, group, vocab_size=vocab_size, z_loss=z_loss)
    tokens = BATCH * LENGTH
    if group.size > 1:
        assert {n: (t.calls, t.payload_bytes) for n, t in forward.tallies.items()} == {"all_reduce": (2, 12 * tokens)}
    with count_communication() as backward:
        (ours * weights).sum().backward()
    assert backward.calls == 0
    assert ours.dtype == torch.float32
    assert torch.equal(logits.detach(), before)
    assert_replicated(ours)
    assert_near(ours, losses)
    assert logits.grad is not None and reference.grad is not None
    grad = gathered(logits.grad, COLUMNS)
    assert not grad[..., vocab_size:].any()
    assert_near(grad.float(), reference.grad.float(), 1e-6 if dtype == torch.float32 else 8e-3)


def _check_all() -> None:
    group = tensor_group()
    for vocab_size in (PADDED, PADDED - 1, PADDED // group.size, 3):  # at 3 some ranks hold only padding
        for z_loss in (0.0, 0.1):
            _check(group, vocab_size, z_loss, 3.0, torch.float32)
    _check(group, PADDED - 1, 0.1, 1e3, torch.float32)  # exp would overflow without the maximum
    _check(group, PADDED - 1, 0.1, 3.0, torch.bfloat16)
    _check_unknown_labels(group)


def _check_unknown_labels(group: Communicator) -> None:
    logits = torch.zeros(1, 4, PADDED // group.size)
    labels = torch.tensor([[0, -100, PADDED - 1, PADDED - 2]])
    losses = vocab_parallel_cross_entropy(logits, labels, group, vocab_size=PADDED - 1)
    assert losses.isnan().tolist() == [[False, True, True, False]]


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("size", [2, 4])
def test_cross_entropy_equals_torchs(size: int) -> None:
    run(size, _check_all)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_cross_entropy_in_a_group_of_one_equals_torchs(z_loss: float) -> None:
    _check(SINGLE, PADDED - 1, z_loss, 3.0, torch.float32)


def test_logsumexp_equals_torchs() -> None:
    logits, labels = torch.randn(2, 3, 8), torch.randint(6, (2, 3))
    losses, logsumexp = cross_entropy_and_logsumexp(logits, labels, SINGLE, vocab_size=6)
    assert torch.equal(logsumexp, logits[..., :6].logsumexp(-1))
    assert losses.shape == logsumexp.shape == labels.shape
    with pytest.raises(IndexError):
        cross_entropy_and_logsumexp(logits, torch.full((2, 3), 6), SINGLE, vocab_size=6)
