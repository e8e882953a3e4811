"""Sampling of tokens: the cache does not change the result, and samples have the requested distribution."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron.errors import TrainingError
from megatron.parametrization.widths import Multipliers
from megatron.sampling import (
    Sampling,
    choose_tokens,
    context_length,
    generate_tokens,
    stream_tokens,
    token_probabilities,
)
from tests.model.helpers import VOCAB, WIDTHS, build, config, tokens

shapes = st.fixed_dictionaries(
    {
        "pos_emb": st.sampled_from(["rotary", "learned", "rpe", "alibi", "none"]),
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "activation": st.sampled_from(["gelu", "swiglu"]),
        "norm": st.sampled_from(["layernorm", "rmsnorm"]),
        "rotary_pct": st.sampled_from([0.25, 1.0]),
        "tied_readout": st.booleans(),
        "parallel_residual": st.booleans(),
        "qk_norm": st.booleans(),
        "sliding_window": st.sampled_from([None, 1, 4]),
    }
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=15)
@given(shapes, st.integers(1, 20), st.integers(1, 3), st.sampled_from([0.0, 1.0]), st.integers(0, 1000))
def test_the_cache_changes_nothing(changes, length, batch, temperature, seed):
    """This also holds beyond the context length (16), for shorter and longer prompts."""
    model = build(config(**changes), seed=seed)
    prompt = tokens(batch, length, seed)
    cached, recomputed = (
        generate_tokens(
            model,
            prompt,
            maximum_tokens=14,
            temperature=temperature,
            top_k=9,
            top_p=0.9,
            generator=seeded(seed),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    )
    assert cached == recomputed
    assert [len(row) for row in cached] == [14] * batch


@given(shapes, st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=10)
def test_greedy_is_the_argmax_of_the_training_logits(changes, length, seed):
    model, prompt = build(config(**changes), seed=seed), tokens(2, length, seed)
    rows = torch.tensor(generate_tokens(model, prompt, maximum_tokens=16 - length))
    text = torch.cat((prompt, rows), dim=1)
    logits = model(text)[:, length - 1 : -1]
    best = logits.topk(2, dim=-1).values
    assume((best[..., 0] - best[..., 1]).min() > 1e-4)  # a tie can be broken either way
    assert torch.equal(rows, logits.argmax(dim=-1))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "none"])
def test_beyond_the_context_the_latest_half_is_read_again(use_cache, pos_emb):
    model, prompt = build(config(pos_emb=pos_emb)), tokens(1, 16)
    assert context_length(model) == 16
    first, second = generate_tokens(model, prompt, maximum_tokens=2, use_cache=use_cache)[0]
    assert first == model(prompt)[0, -1].argmax()
    half = torch.cat((prompt[:, -7:], torch.tensor([[first]])), dim=1)
    assert second == model(half)[0, -1].argmax()
    long = tokens(1, 40)
    assert generate_tokens(model, long, maximum_tokens=5) == generate_tokens(model, long[:, -16:], maximum_tokens=5)


def test_learned_positions_limit_the_context():
    assert context_length(build(config(pos_emb="learned", max_position_embeddings=8, seq_length=16))) == 8
    model = build(config(pos_emb="learned", max_position_embeddings=8, seq_length=16))
    assert len(generate_tokens(model, tokens(1, 12), maximum_tokens=20)[0]) == 20


def test_mup_multipliers_apply_in_generation():
    """Samples follow the softmax of the training logits, including the multipliers."""
    base = dataclasses.replace(WIDTHS, hidden_size=8, num_attention_heads=1, num_kv_heads=1, ffn_hidden_size=12)
    changes = config(tied_readout=False)
    multipliers = Multipliers(output_temp=0.5, attn_temp=2.0, embedding_mult=3.0)
    model = build(changes, base=base, multipliers=multipliers)
    assert model.factors.logits == 0.5 and model.factors.embedding == 3.0
    prompt = tokens(1, 6)
    expected = torch.softmax(model(prompt)[0, -1].detach().double(), dim=-1)
    rows = generate_tokens(model, prompt.repeat(4000, 1), maximum_tokens=1, temperature=1.0, generator=seeded())
    counts = torch.tensor(rows).flatten().bincount(minlength=VOCAB)
    assert chi_square(counts, expected) < 5.0
    without = build(changes, base=WIDTHS)  # the same weights without multipliers: another distribution
    without.load_state_dict(model.state_dict())
    other = torch.softmax(without(prompt)[0, -1].detach().double(), dim=-1)
    assert chi_square(counts, other) > 20.0


# --- the distribution ---


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic in standard deviations above its mean. Classes with few expected counts are pooled."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed = torch.cat((counts[~rare].double(), counts[rare].sum()[None].double()))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None].clamp_min(1e-9)))
    freedom = len(expected) - 1
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_samples_follow_the_softmax_at_the_temperature(temperature):
    logits = torch.randn(1, 12, generator=seeded(4)) * 1.5
    draws = 20_000
    uniform = torch.rand(draws, dtype=torch.float64, generator=seeded(1))
    chosen = choose_tokens(logits.expand(draws, -1), Sampling(temperature=temperature), uniform)
    counts = chosen.bincount(minlength=12)
    assert chi_square(counts, torch.softmax(logits[0].double() / temperature, dim=-1)) < 5.0
    assert chi_square(counts, torch.softmax(logits[0].double() / (temperature * 1.3), dim=-1)) > 10.0


rows_of_logits = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)


@given(rows_of_logits, st.integers(0, 14), st.floats(0.0, 1.0), st.floats(0.1, 3.0))
def test_support_of_top_k_and_top_p(values, top_k, top_p, temperature):
    logits = torch.tensor([values])
    probabilities, ids = token_probabilities(logits, temperature, top_k, top_p)
    assert sorted(ids[0].tolist()) == list(range(len(values)))
    assert probabilities.sum().item() == pytest.approx(1.0)
    support = int((probabilities > 0).sum())
    assert (logits[0, ids[0]].diff() <= 0).all() and probabilities[0, 0] > 0  # the most likely tokens are kept
    full = torch.softmax(logits[0, ids[0]].double() / temperature, dim=-1)
    if top_k:
        full[top_k:] = 0.0
        full = full / full.sum()
    if 0.0 < top_p < 1.0:
        before = full.cumsum(0) - full
        kept = before < top_p - 1e-12
        assert support <= int((before < top_p + 1e-12).sum()) and support >= int((kept & (full > 0)).sum())
        assert full[:support].sum() >= top_p - 1e-9
    else:
        assert support == int((full > 0).sum())
    torch.testing.assert_close(probabilities[0, :support], full[:support] / full[:support].sum(), rtol=1e-6, atol=1e-12)


@given(rows_of_logits, st.integers(1, 5), st.floats(0.05, 0.95), st.floats(0, 1, exclude_max=True))
def test_excluded_tokens_are_never_chosen(values, top_k, top_p, uniform):
    logits = torch.tensor([values])
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
    probabilities, ids = token_probabilities(logits, 1.0, top_k, top_p)
    allowed = ids[probabilities > 0].tolist()
    for u in (uniform, 0.0, 1.0):  # a number below 1 can be rounded to 1
        assert choose_tokens(logits, sampling, torch.tensor([u], dtype=torch.float64)).item() in allowed


def test_top_k_one_and_tiny_top_p_are_greedy():
    model, prompt = build(config()), tokens(2, 5)
    greedy = generate_tokens(model, prompt)
    assert generate_tokens(model, prompt, temperature=1.0, top_k=1) == greedy
    assert generate_tokens(model, prompt, temperature=1.0, top_p=1e-6) == greedy
    assert generate_tokens(model, prompt, temperature=1.0, generator=seeded()) != greedy


def test_extreme_temperatures_do_not_overflow():
    logits = torch.tensor([[3e4, 1.0, -3e4]])
    probabilities, _ = token_probabilities(logits, 1e-6)
    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nonfinite_logits_raise(bad, temperature):
    model = build(config())
    with torch.no_grad():
        model.final_norm.weight[0] = bad
    with pytest.raises(TrainingError, match="not finite"):
        generate_tokens(model, tokens(1, 3), temperature=temperature)


# --- end of document, seeds, and the state of the model ---


def test_eod_ends_each_row_separately():
    model, prompt = build(config()), tokens(6, 4)
    free = generate_tokens(model, prompt, maximum_tokens=12, temperature=1.0, generator=seeded())
    eod = free[2][3]
    stopped = generate_tokens(model, prompt, maximum_tokens=12, temperature=1.0, generator=seeded(), eod=eod)
    assert stopped == [row[: row.index(eod) + 1] if eod in row else row for row in free]
    assert any(eod not in row for row in stopped) and len(stopped[2]) <= 4
    sampling = Sampling(maximum_tokens=12, temperature=1.0, eod=eod)
    columns = torch.stack(list(stream_tokens(model, prompt, sampling, seeded())), dim=1).tolist()
    assert columns == [row + [eod] * (len(columns[0]) - len(row)) for row in stopped]


def test_sampling_stops_once_all_rows_have_ended():
    model, prompt = build(config()), tokens(1, 4).repeat(3, 1)
    eod = generate_tokens(model, prompt, maximum_tokens=1)[0][0]
    steps = list(stream_tokens(model, prompt, Sampling(maximum_tokens=50, eod=eod)))
    assert [step.tolist() for step in steps] == [[eod] * 3]


def test_the_seed_determines_the_text():
    model, prompt = build(config()), tokens(2, 4)

    def sample(seed):
        return generate_tokens(model, prompt, maximum_tokens=10, temperature=1.0, generator=seeded(seed))

    assert sample(1) == sample(1) != sample(2)


def test_with_one_generator_per_row_other_rows_do_not_matter():
    model, prompt = build(config()), tokens(3, 4)

    def sample(rows):
        generators = [seeded(row) for row in rows]
        return generate_tokens(model, prompt[rows], maximum_tokens=10, temperature=1.0, generator=generators)

    together = sample([0, 1, 2])
    assert [sample([row])[0] for row in range(3)] == together


def test_a_model_in_training_mode_stays_in_training_mode():
    model, prompt = build(config(hidden_dropout=0.5, attention_dropout=0.5)).train(), tokens(1, 4)
    assert generate_tokens(model, prompt) == generate_tokens(model, prompt)  # without dropout
    assert model.training
    stream = stream_tokens(model, prompt, Sampling())
    next(stream)
    stream.close()
    assert model.training
    model(prompt).sum().backward()


def test_zero_tokens_and_empty_prompts():
    model = build(config())
    assert generate_tokens(model, tokens(2, 3), maximum_tokens=0) == [[], []]
    with pytest.raises(ValueError, match="length"):
        generate_tokens(model, torch.zeros(1, 0, dtype=torch.int64))
