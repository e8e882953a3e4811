"""Mixtures of experts in the trainer: metrics, accumulation, the rules of muP, and mutations of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from megatron.audit.run import run_audit
from megatron.initialize import initialize_megatron
from megatron.model import moe
from megatron.model.build import materialise
from megatron.monitoring import read_metrics
from megatron.neox_arguments.resolve import audit_config, model_config, run_config
from megatron.training.model_from_config import model_plan
from megatron.training.trainer import Trainer
from mup.roles import Declaration
from mup.rules import Role
from mup.slopes import verdict
from tests.training.harness import arguments, configuration, coordinate_records, losses, train_here

MOE = {"moe_num_experts": 4, "moe_top_k": 2, "moe_router_type": "topk", "init_method_std": 0.1}
LOSSES = {"moe_aux_loss_coeff": 0.3, "moe_z_loss_coeff": 0.05}


def steps(corpus, tmp_path, count=3, **changes):
    """Losses and gradient norms of the first steps."""
    resolved = run_config(arguments(configuration(corpus, tmp_path, **{**MOE, **LOSSES, **changes})))
    trainer = Trainer(resolved, initialize_megatron(seed=resolved.seed))
    module, batches = trainer.train_module, trainer.data.train_batches()
    found = [(module.train_step(batches)[0], module.grad_norm()) for _ in range(count)]
    module.engine.destroy()
    return [value for pair in found for value in pair]


@pytest.mark.parametrize("router", ["topk", "sinkhorn"])
@pytest.mark.parametrize("zero", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_microbatches_do_not_change_the_training(corpus, tmp_path, router, zero):
    changes = {"moe_router_type": router, "zero_optimization": {"stage": zero}}
    changes |= {"moe_aux_loss_coeff": 0.0} if router == "sinkhorn" else {}
    whole = steps(corpus, tmp_path, **changes)
    accumulated = steps(corpus, tmp_path, train_micro_batch_size_per_gpu=1, **changes)
    assert accumulated == pytest.approx(whole, rel=1e-5)


def test_a_router_loss_that_ignores_the_microbatches_is_detected(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.training.engine.gradient_scale", lambda engine: 1.0)
    whole = steps(corpus, tmp_path)
    accumulated = steps(corpus, tmp_path, train_micro_batch_size_per_gpu=1)
    assert accumulated != pytest.approx(whole, rel=1e-4)


def test_metrics_report_the_router_losses_apart_from_the_loss(corpus, tmp_path):
    train_here(configuration(corpus, tmp_path, **MOE, **LOSSES, train_micro_batch_size_per_gpu=2))
    header, records = read_metrics(tmp_path / "metrics.jsonl")
    assert header["model"]["params_active"] < header["model"]["params"]
    trained = [record for record in records if "train/loss" in record]
    assert len(trained) == 8
    # the first record, from the initial weights
    resolved = run_config(arguments(configuration(corpus, tmp_path / "again", **MOE, **LOSSES)))
    trainer = Trainer(resolved, initialize_megatron(seed=resolved.seed))
    model = materialise(trainer.train_module.plan, resolved.seed)
    batch = next(trainer.data.train_batches())["text"]
    logits = []
    for layer in moe.expert_layers(model):
        layer.router.register_forward_hook(lambda *hooked: logits.append(hooked[-1]))
    loss = F.cross_entropy(model(batch[:, :-1])[..., :512].flatten(0, 1), batch[:, 1:].flatten())
    balance = []
    for y in logits:
        shares = F.one_hot(y.topk(2, -1).indices, 4).sum((1, 2)) / (16 * 2)  # [b, n]
        balance.append((4 * (shares * y.softmax(-1).mean(1)).sum(-1)).mean().item())
    z = [y.logsumexp(-1).square().mean().item() for y in logits]
    assert trained[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert trained[0]["train/balance_loss"] == pytest.approx(sum(balance) / 2, rel=1e-5)
    assert trained[0]["train/router_z_loss"] == pytest.approx(sum(z) / 2, rel=1e-5)


def test_evaluation_has_no_router_losses(corpus, tmp_path):
    found = []
    for weight in (0.0, 100.0):
        resolved = run_config(arguments(configuration(corpus, tmp_path, **MOE, moe_aux_loss_coeff=weight)))
        trainer = Trainer(resolved, initialize_megatron(seed=resolved.seed))
        found.append(trainer.evaluate("valid"))
        assert trainer.train_module.model.layers[0].mlp._sums is None
    assert found[0] == found[1] == pytest.approx(math.log(512), rel=0.1)


def test_the_balancing_loss_balances(corpus, tmp_path):
    def last(weight):
        folder = tmp_path / str(weight)
        config = configuration(corpus, folder, **MOE, moe_aux_loss_coeff=weight, train_iters=30, eval_iters=0)
        train_here(config)
        return read_metrics(folder / "metrics.jsonl")[1][-1]["train/balance_loss"]

    without, with_loss = last(0.0), last(1.0)
    assert 1.0 <= with_loss < without - 0.05


def test_at_base_width_mup_is_sp_bit_for_bit(corpus, tmp_path):
    base = {"mup_base_hidden_size": 64, "mup_base_num_attention_heads": 4, **MOE, **LOSSES}
    for router in ({}, {"moe_router_type": "sinkhorn", "moe_aux_loss_coeff": 0.0, "moe_expert_interval": 2}):
        found = []
        for mup in (True, False):
            folder = tmp_path / f"{mup}{len(router)}"
            train_here(configuration(corpus, folder, **{**base, **router}, use_mup=mup))
            found.append(losses(folder))
        assert found[0] == found[1] and len(found[0]) == 8


# --- the rules ---

WIDE = {**MOE, "hidden_size": 64, "intermediate_size": 512, "mup_base_intermediate_size": 64}  # r is 4, and 8 for ffn


def test_every_expert_has_the_rule_of_its_fan_in(corpus, tmp_path):
    """Literal values: the router is a readout; the matrices of an expert are hidden with r = 4 and r = 8."""
    plan = model_plan(model_config(arguments(configuration(corpus, tmp_path, **WIDE))), 512)
    router, up, down = (
        plan.parameters[f"layers.0.mlp.{name}"]
        for name in ("router.weight", "experts.dense_h_to_4h", "experts.dense_4h_to_h")
    )
    assert (router.shape, up.shape, down.shape) == ((4, 64), (4, 512, 64), (4, 64, 512))
    assert (router.scaling.lr, up.scaling.lr, down.scaling.lr) == (1.0, 1 / 4, 1 / 8)
    assert (up.scaling.eps, down.scaling.eps) == (1 / 4, 1 / 4)
    assert (router.scaling.weight_decay, up.scaling.weight_decay, down.scaling.weight_decay) == (1.0, 4.0, 8.0)
    # sqrt(s) / r is smaller than 1 / sqrt(r) where the fan-out grows more slowly than the fan-in
    stds = (0.1, 0.1 / math.sqrt(4), 0.1 / math.sqrt(2 * 2) * math.sqrt(4) / 8)
    assert (router.init_std, up.init_std, down.init_std) == pytest.approx(stds)
    weights = dict(materialise(plan, 1).named_parameters())
    for planned, std in zip((router, up, down), stds):
        measured = weights[planned.name].std(correction=0)
        assert measured.item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("method", ["orthogonal", "xavier_normal", "small_init"])
def test_every_expert_is_drawn_by_itself(corpus, tmp_path, method):
    config = configuration(corpus, tmp_path, **{**MOE, "init_method": method, "output_layer_init_method": method})
    plan = model_plan(model_config(arguments(config)), 512)
    planned = plan.parameters["layers.0.mlp.experts.dense_h_to_4h"]
    stack = dict(materialise(plan, 1).named_parameters())[planned.name]
    expected = {"orthogonal": 1 / math.sqrt(64), "xavier_normal": math.sqrt(2 / 80), "small_init": math.sqrt(2 / 80)}
    assert planned.init_std == pytest.approx(expected[method] / 2)  # one matrix of the base is 64 x 16
    for matrix in stack:
        assert matrix.std().item() == pytest.approx(planned.init_std, rel=0.05)
        if method == "orthogonal":  # 256 x 64, with equal singular values
            values = torch.linalg.svdvals(matrix)
            torch.testing.assert_close(values, values.mean().expand(64), rtol=1e-4, atol=0)
    assert not torch.equal(stack[0], stack[1])


def audit(corpus, tmp_path, **changes):
    return run_audit(audit_config(arguments(configuration(corpus, tmp_path, **changes))), initialize_megatron())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_mup": False},
        {"mup_output_temp": 2.0, "mup_readout_zero_init": True, "activation": "swiglu", "mlp_multiple_of": 8},
        {"moe_expert_interval": 2, "no_weight_tying": False, "zero_optimization": {"stage": 1}},
    ],
)
def test_audit_passes_models_with_experts(corpus, tmp_path, changes):
    result = audit(corpus, tmp_path, **{**WIDE, **changes})
    assert result.passed, [row for row in (*result.parameters, *result.factors) if not row.passed]
    assert "layers.0 router" in [row.name for row in result.factors]


def test_audit_detects_a_router_without_its_multiplier(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(moe.Router, "forward", lambda self, x: F.linear(x, self.weight))
    assert [row.name for row in audit(corpus, tmp_path, **MOE).factors if not row.passed] == [
        "layers.0 router",
        "layers.1 router",
    ]


def records(corpus, tmp_path, use_mup, **changes):
    return coordinate_records(corpus, tmp_path, use_mup, **{**MOE, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_aux_loss_coeff": 0.01, "moe_normalize_expert_weights": True, "activation": "swiglu"},
        {"moe_router_type": "sinkhorn", "moe_expert_interval": 2},
    ],
    ids=["topk", "sinkhorn"],
)
def test_coordinate_check_passes_in_mup_and_fails_in_sp(corpus, tmp_path, changes):
    up, sp = (records(corpus, tmp_path, use_mup, **changes) for use_mup in (True, False))
    result = verdict(up, reference=sp)
    assert result.passed, result.table()
    assert {"mlp.router", "mlp.experts"} <= {row.module for row in result.rows}
    failing = {row.module for row in verdict(sp).rows if not row.ok}
    assert {"mlp.router", "mlp.experts"} <= failing


def _plain_router(monkeypatch):
    monkeypatch.setattr(moe.Router, "forward", lambda self, x: F.linear(x, self.weight))


def _expert_without_fan_in(monkeypatch):
    """The number of experts counts as the fan-in, so neither rate nor init of an expert scales with the width."""

    def declare(module, name, declaration):
        if isinstance(module, moe.Experts):
            declaration = Declaration(Role.HIDDEN, declaration.init, fan_in_dim=0, fan_out_dim=1)
        original(module, name, declaration)

    original = moe.declare_as
    monkeypatch.setattr(moe, "declare_as", declare)


@pytest.mark.parametrize("mutation", [_plain_router, _expert_without_fan_in])
def test_coordinate_check_detects(corpus, tmp_path, monkeypatch, mutation):
    mutation(monkeypatch)
    result = verdict(records(corpus, tmp_path, True, moe_aux_loss_coeff=0.01))
    failing = {row.module for row in result.failures}
    assert failing & {"mlp.router", "mlp.experts"}, result.table()


def test_other_parameters_start_as_in_a_model_without_experts(corpus, tmp_path):
    plans = [
        model_plan(model_config(arguments(configuration(corpus, tmp_path, **changes))), 512)
        for changes in ({"init_method_std": 0.1}, MOE)
    ]
    dense, experts = (dict(materialise(plan, 3).named_parameters()) for plan in plans)
    shared = dense.keys() & experts.keys()
    assert len(shared) > 10 and all(torch.equal(dense[name], experts[name]) for name in shared)
