"""ALiBi and the relative position bias: the scores written out again. Absolute positions: their rows. Both in muP."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from megatron.architecture import Widths
from megatron.model.attention import CoreAttention, KeyValueCache
from megatron.model.embedding import PositionEmbedding, SinusoidalPositions
from megatron.model.relative_position import RelativePositionBias
from megatron.model.score_mask import ScoreMask
from megatron.parametrization.widths import Multipliers, forward_factors
from mup.rules import Options
from tests.model.helpers import WIDTHS, build, config, parametrization, tokens


def by_definition(q, k, v, scale, bias):
    """softmax(scale * q k^T + bias) v over the keys that are not in the future; bias(head, distance)."""
    out = torch.zeros_like(q)
    queries, keys = q.shape[-2], k.shape[-2]
    for head in range(q.shape[1]):
        for i in range(queries):
            at = keys - queries + i
            scores = torch.stack([scale * q[0, head, i] @ k[0, head, j] + bias(head, at - j) for j in range(at + 1)])
            out[0, head, i] = torch.softmax(scores, 0) @ v[0, head, : at + 1]
    return out


@pytest.mark.parametrize("queries", [7, 3, 1])
def test_alibi_subtracts_slope_times_distance(queries):
    slopes = [0.5, 0.25, 0.1]
    q, k, v = torch.randn(1, 3, queries, 4), torch.randn(1, 3, 7, 4), torch.randn(1, 3, 7, 4)
    found = CoreAttention(0.3, 0.0, ScoreMask(slopes=slopes))(q, k, v)
    expected = by_definition(q, k, v, 0.3, lambda head, distance: -slopes[head] * distance)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("queries", [7, 3, 1])
def test_the_table_is_added_to_the_scores(queries):
    bias = RelativePositionBias(3, 4, 6, mult=2.0)
    torch.nn.init.normal_(bias.weight)
    q, k, v = torch.randn(1, 3, queries, 4), torch.randn(1, 3, 7, 4), torch.randn(1, 3, 7, 4)
    found = CoreAttention(0.3, 0.0)(q, k, v, bias=bias(queries, 7))
    buckets = [0, 1, 2, 2, 3, 3, 3]  # 2 + log(distance / 2) / log(6 / 2) * 2, rounded down, at most 3
    expected = by_definition(q, k, v, 0.3, lambda head, distance: 2.0 * bias.weight[buckets[distance], head])
    torch.testing.assert_close(found, expected)


def test_each_block_has_its_own_table():
    model = build(config(pos_emb="rpe"))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "rpe" in name}
    assert shapes == {f"layers.{i}.attention.rpe.weight": (32, 4) for i in range(2)}


@pytest.mark.parametrize("pos_emb", ["alibi", "rpe", "sinusoidal"])
def test_at_base_width_mup_is_sp_bit_for_bit(pos_emb):
    described = config(pos_emb=pos_emb)
    x = tokens()
    assert torch.equal(build(described)(x), build(described, base=described.widths)(x))


def test_the_bias_keeps_its_size_when_heads_grow():
    """In SP the factor is sqrt(head dimension), as in GPT-NeoX; in muP that of the base, times the multiplier."""
    base = Widths(hidden_size=16, num_attention_heads=4, num_kv_heads=4, ffn_hidden_size=24, num_layers=2)
    wide = dataclasses.replace(base, hidden_size=256, ffn_hidden_size=384)
    mup, sp = Options(mup=True), Options(mup=False, weight_decay_mode="constant")
    assert forward_factors(wide, base, sp, Multipliers()).positions == 8.0
    assert forward_factors(wide, base, mup, Multipliers(rp_embedding_mult=3.0)).positions == 6.0


def test_rate_and_deviation_do_not_depend_on_the_width():
    described = config(pos_emb="rpe", num_attention_heads=8, num_kv_heads=8)
    base = dataclasses.replace(WIDTHS, hidden_size=8, num_attention_heads=2, num_kv_heads=2, ffn_hidden_size=12)
    from megatron.model.build import plan_model

    plan = plan_model(described, parametrization(described, base=base)).parameters
    table, hidden = plan["layers.0.attention.rpe.weight"], plan["layers.0.attention.dense.weight"]
    assert (table.scaling.lr, hidden.scaling.lr) == (1.0, 0.25)


@pytest.mark.parametrize("offset", [0, 5])
def test_sinusoidal_rows_hold_all_sines_then_all_cosines(offset):
    found = SinusoidalPositions(6)(offset, 4, torch.zeros(1))
    rates = [10000 ** (-2 * pair / 6) for pair in range(3)]
    rows = [[*(math.sin(p * rate) for rate in rates), *(math.cos(p * rate) for rate in rates)] for p in range(9)]
    torch.testing.assert_close(found, torch.tensor(rows[offset : offset + 4]))
    assert SinusoidalPositions(6)(0, 2, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_first_position_reads_the_row_of_the_offset():
    table = PositionEmbedding(9, 4, first_row=2)
    torch.nn.init.normal_(table.weight)
    assert torch.equal(table(0, 3, table.weight), table.weight[2:5])
    assert torch.equal(table(4, 3, table.weight), table.weight[6:9])


@pytest.mark.parametrize(
    "changes",
    [{"pos_emb": "sinusoidal"}, {"pos_emb": "learned", "position_offset": 2, "max_position_embeddings": 18}],
    ids=["sinusoidal", "offset"],
)
def test_positions_continue_with_a_cache(changes):
    model, x = build(config(**changes)).eval(), tokens(1, 9)
    caches = [KeyValueCache() for _ in model.layers]
    parts = [model(part, caches) for part in (x[:, :4], x[:, 4:5], x[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x))
