"""Relative position bias of T5."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron.mpu import SERIAL, Shard, ShardedModule, TensorParallel, local_shape
from mup.roles import Declaration, declare_as
from mup.rules import Role

# a row is looked up, as of an embedding: its fan-in is the number of buckets, which is finite
_TABLE = Declaration(Role.INPUT, fan_in_dim=0)


def position_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance >= 0, int64 of the same shape.

    Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020, section
    2.1: half of the buckets hold one distance each, the others grow logarithmically up to `max_distance`, and the last
    one also holds all larger distances.
    """
    exact = num_buckets // 2
    share = torch.log(distances.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    larger = exact + (share * (num_buckets - exact)).long()
    return torch.where(distances < exact, distances, larger.clamp(max=num_buckets - 1))


class RelativePositionBias(ShardedModule):
    """A number per head and bucket of distances, times `mult`, that is added to the attention scores.

    num_heads: of the whole model; tensor parallelism splits the table [num_buckets, num_heads] by heads. The table is
    looked up, so its entries are of the size of the scores at every width: initial deviation and rate do not depend on
    the width. Every block has a table of its own, so that pipeline stages share no weight.
    """

    weight: nn.Parameter

    def __init__(
        self, num_heads: int, num_buckets: int, max_distance: int, *, mult: float, tp: TensorParallel = SERIAL
    ) -> None:
        super().__init__()
        self.num_buckets, self.max_distance, self.mult = num_buckets, max_distance, mult
        spec = Shard(1)
        self.add_sharded(
            "weight", nn.Parameter(torch.empty(local_shape((num_buckets, num_heads), spec, tp.group.size))), spec
        )
        declare_as(self, "weight", _TABLE)

    def forward(self, queries: int, keys: int) -> Tensor:
        """[1, heads of this rank, queries, keys]. The queries are the last positions of the keys."""
        distances = torch.arange(keys - 1, -keys, -1, device=self.weight.device).clamp(min=0)  # none for the future
        row = self.weight[position_buckets(distances, self.num_buckets, self.max_distance)].T  # [heads, 2 keys - 1]
        row = row if self.mult == 1.0 else row * self.mult
        # each query sees the window of the row that starts one entry before that of the query before it
        return row.unfold(-1, keys, 1)[:, :queries].flip(1)[None]
