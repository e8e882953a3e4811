"""Properties of a GPT under all settings: causality, a gradient for every weight, no effect of padding."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.architecture import MixtureOfExperts
from megatron.errors import ConfigError
from megatron.model.attention import CoreAttention, KeyValueCache
from megatron.model.build import meta_model, plan_model, shapes_of
from megatron.model.gpt import layer_list
from megatron.model.loss import next_token_loss
from megatron.model.mlp import GATED, PLAIN
from megatron.model.rotary import RotaryEmbedding
from megatron.model.score_mask import ScoreMask
from megatron.parametrization.widths import ForwardFactors, Multipliers
from tests.model.helpers import VOCAB, WIDTHS, build, config, parametrization, tokens

VARIANTS = {
    "neox": dict(rotary_pct=0.25, parallel_residual=True, tied_readout=False),
    "shared norm": dict(parallel_residual=True, shared_norm=True, pos_emb="none"),
    "llama": dict(num_kv_heads=2, norm="rmsnorm", activation="swiglu", attention_bias=False, mlp_bias=False),
    "sinusoidal": dict(pos_emb="sinusoidal", norm="scalenorm", qk_norm=True),
    "opt": dict(pos_emb="learned", position_offset=2, max_position_embeddings=18, norm="non_parametric_layernorm"),
    "gpt2": dict(pos_emb="learned", tied_readout=True),
    "mistral": dict(num_kv_heads=2, norm="rmsnorm", activation="swiglu", sliding_window=5),
    "alibi": dict(pos_emb="alibi", num_kv_heads=2, activation="swiglu"),
    "alibi in a window": dict(pos_emb="alibi", sliding_window=5, tied_readout=False),
    "rpe": dict(pos_emb="rpe", rpe_num_buckets=8, rpe_max_distance=12, num_kv_heads=2),
    "multi-query": dict(num_kv_heads=1, qk_norm=True, norm_bias=False, tied_readout=False),
    "experts": dict(
        experts=MixtureOfExperts(num_experts=4, top_k=2, router="topk", balance_coeff=0.01), activation="swiglu"
    ),
    "experts by sinkhorn": dict(experts=MixtureOfExperts(num_experts=3, interval=2), tied_readout=False),
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def loss_of(model, x):
    return next_token_loss(model(x[:, :-1]), x[:, 1:])


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("activation", [*PLAIN, *GATED])
@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "sinusoidal", "rpe", "alibi", "none"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "scalenorm", "non_parametric_layernorm"])
def test_every_combination_runs(norm, pos_emb, activation):
    model = build(config(num_layers=1, norm=norm, pos_emb=pos_emb, activation=activation))
    logits = model(tokens(2, 5))
    assert logits.shape == (2, 5, VOCAB) and torch.isfinite(logits).all()


@variants
def test_no_token_sees_the_future(changes):
    model, x = build(config(**changes)).eval(), tokens(1, 12)
    before = model(x)
    for position in (0, 5, 11):
        changed = x.clone()
        changed[0, position] = (x[0, position] + 1) % VOCAB
        difference = (model(changed) - before).abs().amax(dim=-1)[0]
        rounding = 1e-5 if "experts" in changes else 0.0  # the sizes of the products of experts change
        assert difference[:position].max().item() <= rounding if position else True
        last = position + changes.get("sliding_window", 12) * len(model.layers)
        assert difference[position : last + 1].min() > rounding  # every later position in the window depends on it
        assert not difference[last + 1 :].any()


@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "sinusoidal", "rpe", "alibi"])
def test_order_matters_with_a_position_embedding(pos_emb):
    def last_logits(pos_emb, x):
        return build(config(num_layers=1, pos_emb=pos_emb))(x)[:, -1]

    x = tokens(1, 8)
    swapped = x[:, [3, 1, 2, 0, 4, 5, 6, 7]]
    assert not torch.allclose(last_logits(pos_emb, x), last_logits(pos_emb, swapped), atol=1e-4)
    torch.testing.assert_close(last_logits("none", x), last_logits("none", swapped))


@variants
def test_every_parameter_gets_a_gradient(changes):
    model = build(config(**changes))
    loss_of(model, tokens(4, 16)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


@variants
def test_the_meta_model_has_the_shapes_of_the_model(changes):
    plan = plan_model(config(**changes), parametrization(config(**changes)))
    meta = meta_model(plan.config, plan.factors)
    assert all(parameter.is_meta for parameter in meta.parameters())
    model = build(config(**changes))
    assert shapes_of(meta) == shapes_of(model)
    padding = 3 * 32 * (1 if changes.get("tied_readout", True) else 2)
    assert plan.num_parameters == sum(parameter.numel() for parameter in model.parameters()) - padding


@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_padding_changes_nothing(tied):
    results = []
    for padded in (VOCAB, 128):
        model = build(config(padded_vocab_size=padded, tied_readout=tied))
        x = tokens(2, 12)
        loss = loss_of(model, x)
        loss.backward()
        results.append((loss, gradients(model), model))
    (loss, plain, _), (padded_loss, padded, model) = results
    torch.testing.assert_close(padded_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in padded.items():
        torch.testing.assert_close(gradient[: plain[name].shape[0]], plain[name], rtol=1e-4, atol=1e-6)
    for name in ["embedding.word_embeddings.weight"] + ([] if tied else ["readout.weight"]):
        assert padded[name].shape[0] == 128 and not padded[name][VOCAB:].any()
    with torch.no_grad():  # the weights of the padding must have no effect either
        for parameter in model.parameters():
            if parameter.shape[0] == 128:
                parameter[VOCAB:] = 100.0
    assert loss_of(model, x).item() == padded_loss.item()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_activation_checkpointing_recomputes_and_changes_nothing(every):
    switches = dict(num_layers=3, hidden_dropout=0.3, attention_dropout=0.3)
    outcomes = []
    for checkpoint_every in (0, every):
        model = build(config(**switches, checkpoint_every=checkpoint_every))
        calls = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(7)
        loss = loss_of(model, tokens(2, 12))
        loss.backward()
        outcomes.append((loss, gradients(model), len(calls)))
    (loss, plain, once), (recomputed_loss, recomputed, twice) = outcomes
    assert recomputed_loss.item() == loss.item()
    assert all(torch.equal(recomputed[name], plain[name]) for name in plain)
    assert (once, twice) == (3, 6)


@pytest.mark.parametrize("kind", ["hidden_dropout", "attention_dropout"])
def test_dropout_applies_only_in_training(kind):
    model, plain, x = build(config(**{kind: 0.5})), build(config()), tokens(2, 12)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(plain.train()(x), plain(x))


@variants
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_is_near_single(changes, dtype, tolerance):
    model, x = build(config(**changes)).eval(), tokens(2, 12)
    single = model(x)
    half = model.to(dtype)(x)
    assert half.dtype == dtype
    assert (half.float() - single).std() < tolerance * single.std()


def test_unknown_names_are_refused():
    for changes in (dict(activation="gelu2"), dict(norm="batchnorm")):
        with pytest.raises(ConfigError, match="gelu2|batchnorm"):
            meta_model(config(**changes), ForwardFactors(1.0, 1.0, 1.0, 1.0))


def test_biases_exist_only_where_configured():
    names = dict(build(config(attention_bias=False, norm_bias=False)).named_parameters())
    assert {n.split(".", 2)[-1] for n in names if n.endswith("bias")} == {
        "mlp.dense_h_to_4h.bias",
        "mlp.dense_4h_to_h.bias",
    }


# --- multipliers ---


def test_mup_at_the_base_equals_sp_bit_for_bit():
    for changes in VARIANTS.values():
        sp = build(config(**changes))
        mup = build(config(**changes), base=config(**changes).widths, depth_alpha=1.0)
        assert torch.equal(sp(tokens()), mup(tokens()))


def test_forward_factors_are_applied():
    base = WIDTHS
    x = tokens()
    plain = build(config(num_layers=1, pos_emb="none", tied_readout=False), base=base)

    def with_(**multipliers):
        changed = config(num_layers=1, pos_emb="none", tied_readout=False)
        return build(changed, base=base, multipliers=Multipliers(**multipliers))

    assert torch.equal(with_(output_temp=4.0)(x), plain(x) / 4.0)
    embedded = plain.embedding(x)
    assert torch.equal(with_(embedding_mult=2.0).embedding(x), embedded * 2.0)
    scaled, attention = with_(attn_temp=2.0).layers[0].attention, plain.layers[0].attention
    assert scaled.core.scale == attention.core.scale / 2.0
    assert not torch.equal(scaled(embedded), attention(embedded))


def test_width_multiplier_in_the_forward_pass():
    """At twice the base width, logits are multiplied by 1/2 and attention scores by sqrt(d_base) / d."""
    base = dataclasses.replace(WIDTHS, hidden_size=16, num_attention_heads=4, ffn_hidden_size=24)
    model = build(config(tied_readout=False), base=base)
    x = model.final_norm(torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(model.readout(x), x @ model.readout.weight[:VOCAB].T / 2.0)
    assert model.layers[0].attention.core.scale == pytest.approx(math.sqrt(4) / 8)


@pytest.mark.parametrize("parallel", [True, False])
def test_depth_multiplier_scales_each_branch(parallel):
    base = dataclasses.replace(WIDTHS, num_layers=1)
    model = build(config(parallel_residual=parallel), base=base, depth_alpha=1.0)
    block, x = model.layers[0], torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    after = x + block.attention(block.input_layernorm(x)) / 2.0
    second = x if parallel else after
    expected = after + block.mlp(block.post_attention_layernorm(second)) / 2.0
    torch.testing.assert_close(block(x), expected)


# --- attention and rotary embedding against their definitions ---


@settings(max_examples=20)
@given(
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    queries=st.integers(1, 5),
    earlier=st.integers(0, 4),
    seed=st.integers(0, 100),
)
def test_core_attention_is_causal_softmax(heads, queries, earlier, seed):
    """Compared with an explicit softmax, including `earlier` keys from a cache."""
    generator = torch.Generator().manual_seed(seed)
    (h, kv), t = heads, queries + earlier
    q = torch.randn(2, h, queries, 8, generator=generator)
    k, v = (torch.randn(2, kv, t, 8, generator=generator) for _ in range(2))
    result = CoreAttention(0.3, 0.0)(q, k, v)
    for head in range(h):
        group = head // (h // kv)
        for i in range(queries):
            seen = slice(0, earlier + i + 1)
            weights = torch.softmax(0.3 * k[:, group, seen] @ q[:, head, i, :, None], dim=1)  # [b, seen, 1]
            expected = (weights * v[:, group, seen]).sum(dim=1)
            torch.testing.assert_close(result[:, head, i], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(a=st.integers(0, 60), b=st.integers(0, 60), shift=st.integers(0, 60), pct=st.sampled_from([0.25, 1.0]))
def test_rotary_scores_depend_only_on_distance(a, b, shift, pct):
    rotary = RotaryEmbedding(int(16 * pct))
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(a))
    score = (rotary(q, a) * rotary(k, b)).sum()
    shifted = (rotary(q, a + shift) * rotary(k, b + shift)).sum()
    torch.testing.assert_close(score, shifted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotary(q, a).norm(), q.norm())
    assert torch.equal(rotary(q, a)[..., rotary.dim :], q[..., rotary.dim :])


def test_rotary_angle_is_position_times_frequency():
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0], x[..., 1] = 1.0, 1.0
    turned = RotaryEmbedding(4, base=100.0)(x)[0, 0]
    for position, row in enumerate(turned):
        angles = torch.tensor([position * 1.0, position * 0.1])
        torch.testing.assert_close(row, torch.cat((angles.cos(), angles.sin())))


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (3, 9), (9, 9), (4, 4), (2, 3)])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_window_hides_older_keys(window, queries, keys):
    """Against an explicit softmax over the token itself and `window` tokens before it, as GPT-NeoX's mask has it."""
    generator = torch.Generator().manual_seed(queries)
    q = torch.randn(1, 2, queries, 8, generator=generator)
    k, v = (torch.randn(1, 2, keys, 8, generator=generator) for _ in range(2))
    result = CoreAttention(0.3, 0.0, ScoreMask(window))(q, k, v)
    for i in range(queries):
        own = keys - queries + i
        seen = slice(max(own - window, 0), own + 1)
        weights = torch.softmax(0.3 * k[:, :, seen] @ q[:, :, i, :, None], dim=2)
        torch.testing.assert_close(result[:, :, i], (weights * v[:, :, seen]).sum(dim=2), rtol=1e-4, atol=1e-5)


def test_a_window_of_the_whole_sequence_keeps_the_fast_path():
    like = torch.zeros(1)
    assert (
        ScoreMask(7)(8, 8, like) is None and ScoreMask()(100, 100, like) is None and ScoreMask()(1, 100, like) is None
    )
    assert ScoreMask(6)(8, 8, like).shape == (1, 1, 8, 8)


def test_the_blocks_share_one_mask():
    model = build(config(sliding_window=3))
    model(tokens(1, 8))
    first, second = (layer.attention.core.mask for layer in model.layers)
    assert first is second and first(8, 8, torch.zeros(1)) is second(8, 8, torch.zeros(1))


def test_a_mask_created_while_sampling_works_in_training():
    model = build(config(sliding_window=3))
    with torch.inference_mode():
        model(tokens(1, 9))
    loss_of(model, tokens(1, 10)).backward()
    assert model.layers[0].attention.query_key_value.weight.grad is not None


def test_a_cache_keeps_the_window():
    cache, x = KeyValueCache(), torch.randn(1, 2, 9, 4)
    keys, _ = cache.extend(x[:, :, :6], x[:, :, :6], window=4)
    assert torch.equal(keys, x[:, :, :6]) and torch.equal(cache.keys, x[:, :, 2:6]) and cache.length == 6
    keys, values = cache.extend(x[:, :, 6:7], 2 * x[:, :, 6:7], window=4)
    assert torch.equal(keys, x[:, :, 2:7]) and torch.equal(values[:, :, -1:], 2 * x[:, :, 6:7])
    assert cache.keys.shape[-2] == 4 and cache.length == 7


def test_cache_grows_with_each_extension():
    cache = KeyValueCache()
    assert cache.length == 0
    first, second = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 1, 4)
    cache.extend(first, first)
    keys, values = cache.extend(second, second * 2)
    assert cache.length == 4
    assert torch.equal(keys, torch.cat((first, second), 2))
    assert torch.equal(values, torch.cat((first, second * 2), 2))


# --- loss ---


def test_loss_is_weighted_mean_cross_entropy_and_z_loss():
    logits = torch.randn(2, 5, VOCAB, requires_grad=True)
    labels = tokens(2, 5)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    losses = -F.log_softmax(logits, dim=-1).gather(-1, labels[..., None]).squeeze(-1)
    torch.testing.assert_close(next_token_loss(logits, labels), losses.mean())
    weights = mask * mask.numel() / mask.sum()
    masked = next_token_loss(logits, labels, weights)
    torch.testing.assert_close(masked, losses[mask].mean())
    with_z = next_token_loss(logits, labels, weights, z_loss=0.1)
    torch.testing.assert_close(with_z, masked + 0.1 * logits.logsumexp(-1)[mask].square().mean())
    with_z.backward()
    seen = logits.grad.abs().sum(dim=-1) > 0
    assert torch.equal(seen, mask)


def test_loss_is_zero_without_weights_and_fp32_for_half_logits():
    logits = torch.randn(1, 4, VOCAB)
    nothing = torch.zeros(1, 4)
    assert next_token_loss(logits, tokens(1, 4), nothing).item() == 0.0
    half = next_token_loss(logits.bfloat16(), tokens(1, 4))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, next_token_loss(logits.bfloat16().float(), tokens(1, 4)))


def test_an_odd_number_of_rotated_entries_raises():
    with pytest.raises(ConfigError, match="rotary-pct"):
        meta_model(config(rotary_pct=0.4), ForwardFactors(1.0, 1.0, 1.0, 1.0))


def test_a_rotary_table_created_while_sampling_works_in_training():
    model = build(config())
    with torch.inference_mode():
        model(tokens(1, 16))
    loss_of(model, tokens()).backward()
    assert model.layers[0].attention.query_key_value.weight.grad is not None


@pytest.mark.parametrize("tied", [True, False])
def test_a_pipeline_has_the_layers_of_the_plain_model(tied):
    described = config(tied_readout=tied)
    factors = ForwardFactors(1.0, 1.0, 1.0, 1.0)
    with torch.device("meta"):
        of_layers = [
            (f"{layer}.{name}", tuple(parameter.shape))
            for layer, factory in layer_list(described, factors)
            for name, parameter in factory().named_parameters()
        ]
    assert of_layers == list(shapes_of(meta_model(described, factors)).items())
