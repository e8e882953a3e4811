"""Dropout masks differ inside, agree outside, and are replayed after a restore or a recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron.mpu import DropoutStreams

RANKS = range(4)


def _masks(streams: DropoutStreams, blocks: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """Draw masks inside and outside in turn, as the blocks of a model do."""
    inside, outside = [], []
    for _ in range(blocks):
        with streams.inside():
            inside.append(torch.rand(64))
        outside.append(torch.rand(64))
    return inside, outside


def _streams(tp_rank: int = 0, dp_rank: int = 0, seed: int = 7, **more: Any) -> DropoutStreams:
    streams = DropoutStreams(seed, tp_rank, dp_rank, **{"tp_size": len(RANKS), **more})
    streams.start()
    return streams


def test_inside_differs_by_rank_and_outside_is_shared() -> None:
    drawn = [_masks(_streams(rank)) for rank in RANKS]
    for step in range(3):
        assert len({tuple(inside[step].tolist()) for inside, _ in drawn}) == len(RANKS)
        assert len({tuple(outside[step].tolist()) for _, outside in drawn}) == 1
    everything = [tuple(mask.tolist()) for mask in drawn[0][0] + drawn[0][1]]
    assert len(set(everything)) == len(everything)  # no mask repeats on one rank


@pytest.mark.parametrize("other", [{"dp_rank": 1}, {"seed": 8}, {"pp_rank": 1}])
def test_replicas_stages_and_seeds_differ_inside_and_outside(other: dict[str, int]) -> None:
    for ours, theirs in zip(_masks(_streams()), _masks(_streams(**other)), strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_draws_inside_do_not_change_the_shared_stream() -> None:
    """Ranks can draw different amounts inside and still agree outside."""
    after = []
    for count in (1, 1000):
        streams = _streams()
        with streams.inside():
            torch.rand(count)
        after.append(torch.rand(8))
    assert torch.equal(*after)


def test_an_exception_inside_restores_the_shared_stream() -> None:
    streams = _streams()
    with pytest.raises(ZeroDivisionError), streams.inside():
        torch.rand(3)
        raise ZeroDivisionError
    outside = torch.rand(8)
    streams = _streams()
    with streams.inside():
        pass
    assert torch.equal(outside, torch.rand(8))


def test_state_restores_both_streams() -> None:
    streams = _streams(1)
    _masks(streams)
    state = streams.state_dict()
    expected = _masks(streams)
    fresh = _streams(1, seed=99)
    fresh.load_state_dict(state)
    for drawn, again in zip(expected, _masks(fresh), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_replays_the_masks(reentrant: bool) -> None:
    streams = _streams(2)

    def block(x: Tensor) -> Tensor:
        with streams.inside():
            x = F.dropout(x.sin(), 0.5)
        return F.dropout(x.cos(), 0.5)

    def gradient(recompute: bool) -> Tensor:
        streams.start()
        x = torch.linspace(0.0, 1.0, 256, requires_grad=True)
        first: Any = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
        y = block(first)
        y.sum().backward()
        assert x.grad is not None
        return torch.cat((y.detach(), x.grad, torch.rand(4)))

    assert torch.equal(gradient(True), gradient(False))


def test_with_one_rank_inside_changes_nothing() -> None:
    streams = _streams(tp_size=1)
    with streams.inside():
        drawn = torch.rand(8)
    streams.start()
    assert torch.equal(drawn, torch.rand(8))
