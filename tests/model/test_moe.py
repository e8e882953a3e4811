"""Mixtures of experts: routers, experts and losses against their formulas, and the gradients of the whole model."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from megatron.architecture import MixtureOfExperts
from megatron.errors import ConfigError
from megatron.model.build import meta_model, plan_model
from megatron.model.grouped import grouped_linear, uses_one_kernel
from megatron.model.mlp import GATED, PLAIN
from megatron.model.moe import Experts, Router, balance_loss, expert_layers, route, router_z_loss, sinkhorn
from megatron.mpu import Communicator, TensorParallel
from megatron.parametrization.widths import ForwardFactors
from megatron.sampling import generate_tokens
from tests.model.helpers import WIDTHS, build, config, parametrization, tokens
from tests.model.test_model import loss_of

TOPK = MixtureOfExperts(num_experts=4, top_k=2, router="topk")
SINKHORN = MixtureOfExperts(num_experts=4)
BOTH = pytest.mark.parametrize("experts", [TOPK, SINKHORN], ids=["topk", "sinkhorn"])


def logits_of(b: int, s: int, n: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(b, s, n, generator=generator, dtype=torch.float64)


# --- losses of the router ---


def written_out(logits: torch.Tensor, chosen: torch.Tensor) -> float:
    """Switch Transformer, eq. 4 to 6, sequence by sequence, with loops over tokens and experts."""
    b, s, n = logits.shape
    total = 0.0
    for sequence in range(b):
        for expert in range(n):
            dispatched = sum(expert in chosen[sequence, t].tolist() for t in range(s)) / (s * chosen.shape[-1])
            weights = [math.exp(x) for t in range(s) for x in logits[sequence, t].tolist()]
            sums = [sum(weights[t * n : (t + 1) * n]) for t in range(s)]
            probability = sum(weights[t * n + expert] / sums[t] for t in range(s)) / s
            total += n * dispatched * probability
    return total / b


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_balancing_loss_is_the_formula_of_the_paper(k):
    logits = logits_of(3, 7, 5)
    chosen = logits.topk(k, -1).indices
    assert float(balance_loss(logits, chosen)) == pytest.approx(written_out(logits, chosen), rel=1e-6)


def test_the_balancing_loss_is_one_if_balanced_and_n_if_one_expert_has_every_token():
    equal = torch.zeros(2, 8, 4)
    assert float(balance_loss(equal, torch.arange(8).view(1, 8, 1).expand(2, 8, 1) % 4)) == pytest.approx(1.0)
    one = torch.tensor([40.0, 0.0, 0.0, 0.0]).expand(2, 8, 4)
    assert float(balance_loss(one, torch.zeros(2, 8, 1, dtype=torch.long))) == pytest.approx(4.0)


def test_the_losses_do_not_depend_on_the_microbatch():
    logits = logits_of(4, 8, 4)
    chosen = logits.topk(2, -1).indices
    for loss in (balance_loss, lambda logits, chosen: router_z_loss(logits)):
        parts = [loss(logits[i : i + 2], chosen[i : i + 2]) for i in (0, 2)]
        assert float(loss(logits, chosen)) == pytest.approx(float(sum(parts)) / 2, rel=1e-6)


def test_the_z_loss_is_the_mean_square_of_the_log_partition_function():
    logits = logits_of(2, 5, 3)
    expected = sum(math.log(sum(map(math.exp, row))) ** 2 for row in logits.flatten(0, 1).tolist()) / 10
    assert float(router_z_loss(logits)) == pytest.approx(expected, rel=1e-6)


def test_the_gradients_of_the_losses_are_finite_differences():
    logits = logits_of(2, 3, 4).requires_grad_()
    chosen = logits.topk(2, -1).indices
    torch.autograd.gradcheck(lambda x: balance_loss(x, chosen), logits)
    torch.autograd.gradcheck(router_z_loss, logits)


# --- routing ---


def test_sinkhorn_tends_to_equal_sums_and_scales_only_rows_and_columns():
    logits = logits_of(3, 12, 4, spread=2.0)
    result = sinkhorn(logits, 300)
    torch.testing.assert_close(result.sum(-1), torch.full((3, 12), 1 / 12, dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(result.sum(-2), torch.full((3, 4), 1 / 4, dtype=torch.float64), rtol=1e-4, atol=0)
    scaling = result.log() - logits  # a_t + b_i: every 2 x 2 minor of the sum is zero
    residual = scaling - scaling[:, :1] - scaling[:, :, :1] + scaling[:, :1, :1]
    assert float(residual.abs().max()) < 1e-9
    assert torch.isfinite(sinkhorn(100.0 * logits)).all()


def test_sinkhorn_balances_each_sequence_by_itself():
    logits = logits_of(2, 64, 4, spread=0.3)
    logits[..., 0] += 2.0  # almost every token prefers expert 0
    weights, chosen = route(logits, SINKHORN, training=True)
    assert int((logits.argmax(-1) == 0).sum()) > 120
    shares = torch.stack([(chosen == i).sum((1, 2)) / 64 for i in range(4)])
    assert shares.min() > 0.15 and shares.max() < 0.35
    alone = route(logits[:1], SINKHORN, training=True)[1]
    assert torch.equal(alone, chosen[:1])
    torch.testing.assert_close(weights, logits.sigmoid().gather(-1, chosen))
    weights, chosen = route(logits, SINKHORN, training=False)
    assert torch.equal(chosen, logits.argmax(-1, keepdim=True))


def test_weights_of_the_chosen_experts():
    logits = logits_of(2, 6, 5)
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    top = probabilities.sort(-1, descending=True)
    weights, chosen = route(logits, TOPK, training=True)
    torch.testing.assert_close(weights, top.values[..., :2])
    assert torch.equal(chosen, top.indices[..., :2])
    normalized, _ = route(logits, dataclasses.replace(TOPK, normalize=True), training=True)
    torch.testing.assert_close(normalized, weights / (weights[..., :1] + weights[..., 1:]))
    by_sinkhorn, chosen = route(logits, dataclasses.replace(SINKHORN, top_k=2), training=True)
    torch.testing.assert_close(by_sinkhorn, probabilities.gather(-1, chosen))


def test_jitter_multiplies_the_input_of_the_router_in_training_only():
    router = Router(8, 4, mult=1.0, jitter=0.1)
    torch.nn.init.normal_(router.weight)
    x = torch.randn(2, 5, 8)
    exact = F.linear(x, router.weight)
    assert torch.equal(router.eval()(x), exact)
    torch.manual_seed(3)
    noisy = router.train()(x)
    torch.manual_seed(3)
    noise = torch.empty_like(x).uniform_(0.9, 1.1)
    torch.testing.assert_close(noisy, F.linear(x * noise, router.weight))
    assert not torch.equal(noisy, exact)


def test_the_router_is_multiplied_by_the_factor_of_the_readout():
    """At four times the base width the router's logits are multiplied by 1/4."""
    base = dataclasses.replace(WIDTHS, hidden_size=8, num_attention_heads=1, num_kv_heads=1, ffn_hidden_size=12)
    layer = build(config(experts=TOPK), base=base).layers[0].mlp
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(layer.router(x), x @ layer.router.weight.T / 4)


# --- experts ---


def token_by_token(experts, x, weights, chosen, kind):
    """sum_k weight_k * down_k(act(up_k x)), one token and one expert at a time."""
    rows = []
    for t in range(x.shape[1]):
        row = torch.zeros_like(x[0, 0])
        for weight, expert in zip(weights[0, t], chosen[0, t].tolist()):
            hidden = experts.dense_h_to_4h[expert] @ x[0, t]
            if kind in GATED:
                up, gate = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
                hidden = GATED[kind](gate) * up
            else:
                hidden = PLAIN[kind](hidden)
            row = row + weight * (experts.dense_4h_to_h[expert] @ hidden)
        rows.append(row)
    return torch.stack(rows)[None]


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("k", [1, 3])
def test_experts_and_their_gradients_token_by_token(kind, k):
    generator = torch.Generator().manual_seed(1)
    experts = Experts(5, 8, 6, kind).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn(1, 9, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(1, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weights, chosen = scores.topk(k, -1)  # no token uses the last expert
    grads = []
    for y in (experts(x, weights, chosen), token_by_token(experts, x, weights, chosen, kind)):
        inputs = [x, scores, *experts.parameters()]
        grads.append([y, *torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)])
    for ours, expected in zip(*grads):
        torch.testing.assert_close(ours, expected)
    assert not grads[0][3][4].any() and grads[0][3][:4].any()


def test_groups_can_be_empty_and_have_equal_sizes_on_the_meta_device():
    x, weight = torch.randn(6, 4), torch.randn(3, 2, 4)
    counts = torch.tensor([4, 0, 2])
    expected = torch.cat([x[:4] @ weight[0].T, x[4:] @ weight[2].T])
    torch.testing.assert_close(grouped_linear(x, weight, counts), expected)
    meta = grouped_linear(x.to("meta"), weight.to("meta"), counts.to("meta"))
    assert meta.is_meta and meta.shape == (6, 2)
    assert not uses_one_kernel(x, weight)


def test_experts_without_equal_parts_for_the_ranks_are_an_error():
    tp = TensorParallel(Communicator(0, 4, (0, 1, 2, 3)))
    with pytest.raises(ConfigError, match="must be a multiple of 4"), torch.device("meta"):
        Experts(2, 8, 6, "gelu", tp)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_copied_or_unpickled_layer_keeps_its_shards(activation):
    model = build(config(experts=TOPK, activation=activation))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.layers[0].mlp.experts.dense_h_to_4h.shard.dim == 1
        assert torch.equal(other.eval()(tokens()), model.eval()(tokens()))


# --- the whole model ---


def test_every_interval_th_block_has_experts_the_first_one_included():
    model = meta_model(
        config(num_layers=5, experts=dataclasses.replace(TOPK, interval=2)), ForwardFactors(1.0, 1.0, 1.0, 1.0)
    )
    assert [bool(expert_layers(layer)) for layer in model.layers] == [True, False, True, False, True]
    assert TOPK.blocks(5) == 5 and dataclasses.replace(TOPK, interval=2).blocks(5) == 3


def test_parameters_in_total_and_active():
    described = config(experts=dataclasses.replace(TOPK, interval=2), num_layers=3, ffn_hidden_size=48)
    plan = plan_model(described, parametrization(described))
    dense = plan_model(config(num_layers=3), parametrization(config(num_layers=3)))
    expert, bias, router = 2 * 32 * 48, 32 + 48, 4 * 32  # two of three blocks have experts
    assert plan.num_parameters == dense.num_parameters + 2 * (3 * expert - bias + router)
    assert plan.num_active_parameters == dense.num_parameters + 2 * (expert - bias + router)
    assert dense.num_active_parameters == dense.num_parameters


COEFFICIENTS = dict(balance_coeff=0.3, z_coeff=0.05)


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_router_gradients_are_those_of_the_loss_plus_the_weighted_router_losses(checkpoint_every):
    """The second source computes the sum from the recorded logits, and differentiates it in one graph."""
    experts = dataclasses.replace(TOPK, **COEFFICIENTS)
    x = tokens(4, 12)
    model = build(config(experts=experts, num_layers=3, checkpoint_every=checkpoint_every))
    loss = loss_of(model, x)
    loss.backward()
    plain = build(config(experts=TOPK, num_layers=3))
    found = []
    for layer in expert_layers(plain):
        layer.router.register_forward_hook(lambda *hooked: found.append(hooked[-1]))
    total = expected_loss = loss_of(plain, x)
    losses = [(balance_loss(y, y.topk(2, -1).indices), router_z_loss(y)) for y in found]
    for balance, z in losses:
        total = total + 0.3 * balance + 0.05 * z
    total.backward()
    assert len(losses) == 3 and loss.item() == expected_loss.item()  # the reported loss has no router losses
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-7)
    for layer, (balance, z) in zip(expert_layers(model), losses):
        torch.testing.assert_close(layer.take_losses(), torch.stack((balance, z)).detach())
        with pytest.raises(RuntimeError, match="has not run in training"):
            layer.take_losses()


def test_router_gradients_are_finite_differences():
    """In double precision, through the experts' weights, the normalised top-k and both losses of the router."""
    experts = dataclasses.replace(TOPK, normalize=True, **COEFFICIENTS)
    model, x = build(config(experts=experts, activation="swiglu", pos_emb="none")).double(), tokens(2, 8)

    def cross_entropy() -> torch.Tensor:
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())  # in double precision

    def total() -> float:
        loss = cross_entropy().item()
        sums = [layer.take_losses().tolist() for layer in expert_layers(model)]
        return loss + sum(0.3 * balance + 0.05 * z for balance, z in sums)

    cross_entropy().backward()
    for layer in expert_layers(model):
        layer.take_losses()
    step = 1e-6
    for parameter in (model.layers[0].mlp.router.weight, model.layers[1].mlp.experts.dense_h_to_4h):
        gradient, flat = parameter.grad.flatten(), parameter.data.view(-1)
        for index in gradient.abs().topk(5).indices.tolist():
            values = []
            for sign in (1, -2):
                flat[index] += sign * step
                values.append(total())
            flat[index] += step
            assert gradient[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-8)


def test_router_losses_act_only_in_training():
    experts = dataclasses.replace(TOPK, balance_coeff=100.0)
    model, x = build(config(experts=experts)).eval(), tokens(2, 12)
    loss_of(model, x).backward()
    reference = build(config(experts=TOPK)).eval()
    loss_of(reference, x).backward()
    for ours, expected in zip(model.parameters(), reference.parameters()):
        assert torch.equal(ours.grad, expected.grad)
    with pytest.raises(RuntimeError, match="has not run in training"):
        model.layers[0].mlp.take_losses()


@BOTH
def test_generation_with_and_without_the_cache(experts):
    model = build(config(experts=experts)).eval()
    prompt = tokens(3, 5)
    cached = generate_tokens(model, prompt, maximum_tokens=8)
    x = prompt
    for _ in range(8):
        x = torch.cat((x, model(x)[:, -1:].argmax(-1)), 1)
    assert cached == x[:, 5:].tolist()


@BOTH
def test_bfloat16_runs_and_routes_in_fp32(experts):
    model = build(config(experts=experts)).bfloat16()
    kinds = []
    for layer in expert_layers(model):
        layer.router.register_forward_hook(lambda *hooked: kinds.append(hooked[-1].dtype))
    loss = loss_of(model, tokens(2, 12))
    loss.backward()
    assert torch.isfinite(loss) and set(kinds) == {torch.float32}
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.bfloat16 for p in model.parameters())
