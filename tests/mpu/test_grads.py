"""Gradient norm and partial gradients against an unsharded model."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.mpu import (
    SINGLE,
    ColumnParallelLinear,
    Communicator,
    Grid,
    ProcessGroups,
    RowParallelLinear,
    Shard,
    count_communication,
    global_grad_norm,
    mark_partial_grads,
    named_shards,
    partial_grad_parameters,
    shard,
    sync_partial_grads_in_backward,
)
from tests.mpu.distributed import run
from tests.mpu.parallel import assert_near, assert_replicated

HIDDEN, FFN, BATCH, LENGTH = 8, 16, 2, 8


class Net(nn.Module):
    """Norm and MLP with a residual: sharded, replicated and (sequence parallel) partial parameters."""

    def __init__(self, group: Communicator, sequence: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = ColumnParallelLinear(HIDDEN, FFN, group=group, sequence_parallel=sequence)
        self.down = RowParallelLinear(FFN, HIDDEN, group=group, sequence_parallel=sequence)
        if sequence:
            mark_partial_grads(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def build(group: Communicator, sequence: bool = False) -> Net:
    """Build the net with the same weights for every group: each one is drawn in full, seeded by its position."""
    net = Net(group, sequence)
    shards = named_shards(net)
    whole = Net(SINGLE, sequence)
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(whole.named_parameters()):
            full = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            local = net.get_parameter(name)
            local.copy_(shard(full, shards[name], group.rank, group.size) if name in shards else full)
    return net


def data(seed: int = 99) -> Tensor:
    return torch.randn(BATCH, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed))


def reference_gradients() -> tuple[dict[str, Tensor], float]:
    net = build(SINGLE)
    net(data()).square().sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return grads, float(torch.cat([grad.flatten() for grad in grads.values()]).norm())


def _check_partial(groups: ProcessGroups) -> None:
    expected, norm = reference_gradients()
    group = groups.tensor
    net = build(group, sequence=True)
    assert list(partial_grad_parameters(net)) == ["norm.weight", "norm.bias", "down.bias"]
    handles = sync_partial_grads_in_backward(net, group)
    half = [shard(part, Shard(1), group.rank, group.size) for part in data().chunk(2)]
    with count_communication() as counts:
        for microbatch in half:  # the gradients of two microbatches accumulate
            net(microbatch).square().sum().backward()
    for handle in handles:
        handle.remove()
    assert (counts["all_reduce"].calls, counts["all_reduce"].payload_bytes) == (3 * 2, 2 * 4 * 3 * HIDDEN)
    shards = named_shards(net)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        if name not in shards:
            assert_replicated(parameter.grad)
        full = expected[name]
        assert_near(parameter.grad, shard(full, shards[name], group.rank, group.size) if name in shards else full)
    total = global_grad_norm(net.parameters(), groups)
    assert_replicated(total)
    assert float(total) == pytest.approx(norm, rel=1e-6)


def _check_norm(tensor: int, pipe: int) -> None:
    """Stages hold different layers: the norm covers all of them."""
    groups = ProcessGroups.create(Grid.for_world(dist.get_world_size(), tensor, pipe))
    _, norm = reference_gradients()
    net = build(groups.tensor)
    net(data()).square().sum().backward()
    with count_communication() as counts:
        total = global_grad_norm(net.parameters(), groups)
    assert float(total) == pytest.approx(math.sqrt(pipe) * norm, rel=1e-6)
    assert total.dtype == torch.float32
    assert counts.calls == (tensor * pipe > 1) and counts["all_reduce"].payload_bytes in (0, 8)
    if pipe > 1:  # a tied parameter: only the copy of the first stage counts
        bias = net.down.bias
        assert bias is not None and bias.grad is not None
        bias.ds_pipe_replicated = groups.pipe.rank > 0  # type: ignore[attr-defined]
        once = pipe * norm**2 - (pipe - 1) * float(bias.grad.double().square().sum())
        assert float(global_grad_norm(net.parameters(), groups)) == pytest.approx(math.sqrt(once), rel=1e-6)
    frozen = list(copy.deepcopy(net).requires_grad_(False).parameters())
    assert float(global_grad_norm(frozen, groups)) == 0.0
    assert float(global_grad_norm([], groups)) == 0.0


def _check_all() -> None:
    size = dist.get_world_size()
    groups = ProcessGroups.create(Grid(tensor=size))
    _check_partial(groups)
    for tensor, pipe in ((1, 1), (size, 1), (size // 2, 2), (1, size)):
        _check_norm(tensor, pipe)


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("size", [2, 4])
def test_gradients_equal_those_of_one_process(size: int) -> None:
    run(size, _check_all)


def test_half_precision_gradients_are_squared_in_fp32() -> None:
    parameter = nn.Parameter(torch.zeros(4096, dtype=torch.float16))
    parameter.grad = torch.full((4096,), 2000.0, dtype=torch.float16)
    norm = global_grad_norm([parameter], ProcessGroups.described(Grid(), 0))
    assert float(norm) == pytest.approx(2000.0 * 64)  # beyond the largest float16


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_norm_of_a_nonfinite_gradient_is_not_finite(bad: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, bad])
    assert not global_grad_norm([parameter], ProcessGroups.described(Grid(), 0)).isfinite()


def test_marks_survive_new_parameters() -> None:
    with torch.device("meta"):
        net = Net(Communicator(0, 2), sequence=True)
    net.to_empty(device="cpu")
    for changed in (net, copy.deepcopy(net)):
        found = partial_grad_parameters(changed)
        assert list(found) == ["norm.weight", "norm.bias", "down.bias"]
        assert all(found[name] is changed.get_parameter(name) for name in found)


# --- under DeepSpeed's engine ---


def _engine_steps(stage: int, tensor: int) -> list[dict[str, Any]]:
    import logging

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    groups = ProcessGroups.create(Grid.for_world(dist.get_world_size(), tensor))
    return [_engine_step(stage, groups, sequence) for sequence in (False, True)]


def _engine_step(stage: int, groups: ProcessGroups, sequence: bool) -> dict[str, Any]:
    import deepspeed

    net = build(groups.tensor, sequence)
    sync_partial_grads_in_backward(net, groups.tensor)
    shards = named_shards(net)
    config: dict[str, Any] = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // groups.data.size,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # plain SGD: the step is proportional to the gradient
        "gradient_clipping": 1e9,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config, mpu=groups)
    x = shard(data(), Shard(0), groups.data.rank, groups.data.size)
    if sequence:
        x = shard(x, Shard(1), groups.tensor.rank, groups.tensor.size)
    engine.backward(engine(x).square().sum())
    engine.step()
    norm = engine.get_global_grad_norm()
    weights = {name: p.detach().float() for name, p in engine.module.named_parameters()}
    return {
        "norm": None if norm is None else float(norm),
        "weights": weights,
        "shards": shards,
        "rank": groups.tensor.rank,
    }


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeeds_engine_accepts_the_groups(stage: int) -> None:
    """TP 2 x DP 2 under every ZeRO stage, with and without sequence slices, gives the norm and step of one process."""
    grads, norm = reference_gradients()
    whole = build(SINGLE)
    for result in chain.from_iterable(run(4, _engine_steps, stage, 2)):
        if stage > 0:  # stage 0 in fp32 does not report a norm
            assert result["norm"] == pytest.approx(norm / 2, rel=1e-5)  # two replicas: the mean of their gradients
        if stage == 3:
            continue  # the weights are partitioned
        for name, weight in result["weights"].items():
            full = whole.get_parameter(name).detach() - 1e-2 * grads[name] / 2
            spec = result["shards"].get(name)
            assert_near(weight, shard(full, spec, result["rank"], 2) if spec else full)
