"""Operation counts against a real torch model, and the timer with a simulated clock."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from megatron.architecture import MixtureOfExperts
from megatron.model.moe import MoE
from megatron.monitoring import ThroughputTimer, flops_per_token, peak_tflops


def shape(**changes):
    return {
        "num_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "ffn_hidden_size": 256,
        "gated": False,
        "vocab_size": 1000,
        "seq_length": 32,
    } | changes


@given(st.integers(1, 8), st.sampled_from((32, 64, 128)), st.integers(1, 512), st.booleans())
def test_multi_head_attention_gives_palms_formula(layers, hidden, seq, gated):
    facts = shape(num_layers=layers, hidden_size=hidden, head_dim=hidden // 4, seq_length=seq, gated=gated)
    matrices = layers * (4 * hidden**2 + (3 if gated else 2) * hidden * 256) + hidden * 1000
    assert flops_per_token(**facts) == 6 * matrices + 12 * layers * hidden * seq


@pytest.mark.parametrize(("window", "seen"), [(None, 32), (7, 8), (31, 32), (100, 32)])
def test_a_sliding_window_limits_the_scores(window, seen):
    facts = shape()
    scores = 12 * 3 * 64
    assert flops_per_token(**facts, sliding_window=window) == flops_per_token(**facts) - scores * (32 - seen)


@pytest.mark.parametrize(("kv_heads", "gated"), [(4, False), (2, True), (1, False)])
def test_agrees_with_torchs_count(kv_heads, gated):
    facts = shape(num_kv_heads=kv_heads, gated=gated, num_layers=1)
    batch, seq, hidden, heads, head_dim, ffn = 2, 32, 64, 4, 16, 256
    x = torch.randn(batch, seq, hidden, requires_grad=True)

    def matrix(fan_in, fan_out):
        return torch.randn(fan_in, fan_out, requires_grad=True)

    with FlopCounterMode(display=False) as counter:
        q = (x @ matrix(hidden, heads * head_dim)).view(batch, seq, heads, head_dim).transpose(1, 2)
        kv = (x @ matrix(hidden, 2 * kv_heads * head_dim)).view(batch, seq, kv_heads, 2 * head_dim).transpose(1, 2)
        k, v = kv.repeat_interleave(heads // kv_heads, 1).chunk(2, -1)
        attended = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        h = attended.transpose(1, 2).reshape(batch, seq, -1) @ matrix(heads * head_dim, hidden)
        h = (h @ matrix(hidden, ffn)) * (h @ matrix(hidden, ffn) if gated else 1) @ matrix(ffn, hidden)
        (h @ matrix(hidden, 1000)).sum().backward()
    assert counter.get_total_flops() == flops_per_token(**facts) * batch * seq


@pytest.mark.parametrize("k", [1, 2])
def test_experts_agree_with_torchs_count(k):
    """The products of a layer with experts, as torch counts them, in place of those of an MLP."""
    experts = MixtureOfExperts(num_experts=4, top_k=k, router="topk")
    layer = MoE(experts, 64, 256, "swiglu", router_mult=1.0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 32, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    dense = flops_per_token(**shape(gated=True, num_layers=1))
    with_experts = flops_per_token(**shape(gated=True, num_layers=1), experts=experts)
    mlp = 6 * 3 * 64 * 256
    assert counter.get_total_flops() == (with_experts - dense + mlp) * 2 * 32


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("AMD Instinct MI300X", 1307.4),
        ("Some CPU", None),
    ],
)
def test_peak_by_device_name(name, peak):
    assert peak_tflops(name) == peak


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_window_excludes_pauses_and_earlier_windows():
    clock = Clock()
    timer = ThroughputTimer(total_steps=100, flops_per_token=2e9, num_devices=4, peak_tflops=10.0, clock=clock)
    timer.start(step=10, tokens=1000)
    clock.now += 5
    with timer.paused():
        clock.now += 1000
    clock.now += 5
    assert timer.window(step=30, tokens=41_000) == pytest.approx(
        {"step_seconds": 0.5, "tokens_per_second": 4000, "eta_seconds": 35, "tflops": 2.0, "mfu": 0.2}
    )
    clock.now += 1
    assert timer.window(step=31, tokens=42_000)["tokens_per_second"] == 1000, "windows are independent"


def test_a_pause_is_excluded_even_if_its_body_fails():
    clock = Clock()
    timer = ThroughputTimer(total_steps=10, clock=clock)
    with pytest.raises(RuntimeError), timer.paused():
        clock.now += 7
        raise RuntimeError
    clock.now += 1
    assert timer.window(1, 10) == {"step_seconds": 1, "tokens_per_second": 10, "eta_seconds": 9}


def test_an_empty_window_has_no_figures():
    clock = Clock()
    timer = ThroughputTimer(total_steps=10, clock=clock)
    assert timer.window(1, 10) == {}, "no time passed"
    clock.now += 1
    assert timer.window(1, 10) == {}, "no step was made"
