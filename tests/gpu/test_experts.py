"""Experts on a GPU: torch's grouped product, and runs in bfloat16, compiled or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.model import grouped
from tests.gpu.conftest import Train

MOE = {"moe_num_experts": 4, "moe_top_k": 2, "moe_router_type": "topk", "moe_aux_loss_coeff": 0.01}


@pytest.mark.skipif(grouped._grouped_mm is None, reason="torch has no grouped product")
def test_one_kernel_gives_the_products_and_gradients_of_single_ones(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator("cuda").manual_seed(0)
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator, "requires_grad": True}
    x, weight = torch.randn(300, 64, **options), torch.randn(5, 96, 64, **options)
    counts = torch.tensor([100, 0, 37, 163, 0], device="cuda")
    cotangent = torch.randn(300, 96, device="cuda", dtype=torch.bfloat16, generator=generator)
    assert grouped.uses_one_kernel(x, weight)
    results = []
    for one_kernel in (True, False):
        if not one_kernel:
            monkeypatch.setattr(grouped, "_grouped_mm", None)
        y = grouped.grouped_linear(x, weight, counts)
        results.append((y, *torch.autograd.grad(y, (x, weight), cotangent)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.05)
    assert not results[0][2][1].any() and results[0][2][3].any()


@pytest.mark.parametrize("changes", [{}, {"torch_compile": True}, {"zero_optimization": {"stage": 3}}])
def test_experts_train_in_bfloat16_like_in_fp32(train: Train, changes: dict[str, object]):
    full = train(train_iters=60, **MOE)
    half = train(train_iters=60, precision="bfloat16", **MOE, **changes)
    assert full[-1]["train/loss"] < 0.6 * full[0]["train/loss"]
    assert half[-1]["train/loss"] == pytest.approx(full[-1]["train/loss"], rel=0.05)
    assert half[-1]["train/balance_loss"] < 1.5
