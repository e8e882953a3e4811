"""Outputs and gradients of every layer against torch's unsharded layer; communication against the docstrings."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.mpu import (
    SINGLE,
    ColumnParallelLinear,
    CommunicationCounts,
    Communicator,
    RowParallelLinear,
    Shard,
    ShardedModule,
    VocabParallelEmbedding,
    column_parallel_linear,
    count_communication,
    partial_grad_parameters,
    shard,
)
from tests.mpu.distributed import run
from tests.mpu.parallel import assert_near, assert_replicated, gathered, tensor_group

BATCH, LENGTH, HIDDEN, OUT, ROWS, VOCAB = 3, 8, 16, 24, 40, 33
ACTIVATION_BYTES = 4 * BATCH * LENGTH  # of one feature, fp32
SEQUENCE = Shard(1)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _fill(layer: ShardedModule, full: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            spec = layer.shards.get(name)
            group: Communicator = layer.group  # type: ignore[assignment]
            parameter.copy_(shard(full[name], spec, group.rank, group.size) if spec else full[name])


def _local(full: Tensor, group: Communicator, spec: Shard | None) -> Tensor:
    part = shard(full, spec, group.rank, group.size) if spec else full
    return part.detach().clone().requires_grad_(full.requires_grad)


def _check_counts(counts: CommunicationCounts, size: int, expected: dict[str, tuple[int, int]]) -> None:
    """expected: collective -> (calls, payload bytes). Each rank sends (n-1)/n of the payload, all_reduce twice."""
    assert {name: (t.calls, t.payload_bytes) for name, t in counts.tallies.items()} == expected
    for name, (_, payload) in expected.items():
        assert counts[name].sent_bytes == (2 if name == "all_reduce" else 1) * payload * (size - 1) / size


def _compare_gradients(layer: ShardedModule, reference: dict[str, Tensor]) -> None:
    for partial in partial_grad_parameters(layer).values():
        partial.grad = layer.group.all_reduce(partial.grad)  # type: ignore[operator,union-attr]
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        if name in layer.shards:
            assert_near(gathered(parameter.grad, layer.shards[name]), reference[name].grad)
        else:
            assert_replicated(parameter.grad)
            assert_near(parameter.grad, reference[name].grad)


def _check_column(group: Communicator, sequence: bool, bias: bool, blocks: int) -> None:
    full = {"weight": _random(OUT, HIDDEN, seed=1), "bias": _random(OUT, seed=2)}
    full = {name: value.requires_grad_() for name, value in full.items() if bias or name != "bias"}
    x, direction = (
        _random(BATCH, LENGTH, HIDDEN, seed=3).requires_grad_(),
        _random(BATCH, LENGTH, OUT, seed=4),
    )
    y = F.linear(x, full["weight"], full.get("bias"))
    (y * direction).sum().backward()

    layer = ColumnParallelLinear(HIDDEN, OUT, bias, group=group, blocks=blocks, sequence_parallel=sequence)
    assert not partial_grad_parameters(layer)
    _fill(layer, full)
    across, along = Shard(2, blocks), SEQUENCE if sequence else None
    local_x = _local(x, group, along)
    payload = HIDDEN * ACTIVATION_BYTES
    with count_communication() as forward:
        local_y = layer(local_x)
    _check_counts(forward, group.size, {"all_gather": (1, payload)} if sequence else {})
    with count_communication() as backward:
        (local_y * _local(direction, group, across)).sum().backward()
    _check_counts(backward, group.size, {"reduce_scatter" if sequence else "all_reduce": (1, payload)})
    assert_near(gathered(local_y, across), y)
    assert local_x.grad is not None
    assert_near(gathered(local_x.grad, along) if along else local_x.grad, x.grad)
    _compare_gradients(layer, full)


def _check_row(group: Communicator, sequence: bool, bias: bool) -> None:
    full = {"weight": _random(HIDDEN, OUT, seed=1), "bias": _random(HIDDEN, seed=2)}
    full = {name: value.requires_grad_() for name, value in full.items() if bias or name != "bias"}
    x, direction = (
        _random(BATCH, LENGTH, OUT, seed=3).requires_grad_(),
        _random(BATCH, LENGTH, HIDDEN, seed=4),
    )
    y = F.linear(x, full["weight"], full.get("bias"))
    (y * direction).sum().backward()

    layer = RowParallelLinear(OUT, HIDDEN, bias, group=group, sequence_parallel=sequence)
    assert list(partial_grad_parameters(layer)) == (["bias"] if bias and sequence else [])
    _fill(layer, full)
    across, along = Shard(2), SEQUENCE if sequence else None
    local_x = _local(x, group, across)
    payload = HIDDEN * ACTIVATION_BYTES
    with count_communication() as forward:
        local_y = layer(local_x)
    _check_counts(forward, group.size, {"reduce_scatter" if sequence else "all_reduce": (1, payload)})
    with count_communication() as backward:
        (local_y * _local(direction, group, along)).sum().backward()
    _check_counts(backward, group.size, {"all_gather": (1, payload)} if sequence else {})
    assert_near(gathered(local_y, along) if along else local_y, y)
    assert local_x.grad is not None
    assert_near(gathered(local_x.grad, across), x.grad)
    _compare_gradients(layer, full)


def _check_embedding(group: Communicator, sequence: bool) -> None:
    """The table is padded: rows from VOCAB on are never looked up and get no gradient."""
    table = _random(ROWS, HIDDEN, seed=1).requires_grad_()
    tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
    direction = _random(BATCH, LENGTH, HIDDEN, seed=3)
    y = F.embedding(tokens, table)
    (y * direction).sum().backward()

    layer = VocabParallelEmbedding(ROWS, HIDDEN, group=group, sequence_parallel=sequence)
    _fill(layer, {"weight": table})
    along = SEQUENCE if sequence else None
    payload = HIDDEN * ACTIVATION_BYTES
    with count_communication() as forward:
        local_y = layer(tokens)
    _check_counts(forward, group.size, {"reduce_scatter" if sequence else "all_reduce": (1, payload)})
    with count_communication() as backward:
        (local_y * _local(direction, group, along)).sum().backward()
    _check_counts(backward, group.size, {"all_gather": (1, payload)} if sequence else {})
    assert torch.equal(gathered(local_y, along) if along else local_y, y)  # one rank's row plus zeros
    assert layer.weight.grad is not None
    grad = gathered(layer.weight.grad, Shard(0))
    assert_near(grad, table.grad)
    assert not grad[VOCAB:].any() and grad[:VOCAB].any()


class _Block(nn.Module):
    """Norm, gated MLP and residual: the part of a block that sequence parallelism splits."""

    def __init__(self, group: Communicator, sequence: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = ColumnParallelLinear(HIDDEN, 2 * OUT, group=group, blocks=2, sequence_parallel=sequence)
        self.down = RowParallelLinear(OUT, HIDDEN, group=group, sequence_parallel=sequence)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def _check_bytes_of_a_block(group: Communicator) -> None:
    """Sequence parallelism sends as many bytes as plain tensor parallelism, and its norm processes 1/n of the input."""
    sent, norm_inputs = [], []
    for sequence in (False, True):
        block = _Block(group, sequence)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.1)
        block.norm.register_forward_hook(lambda module, inputs, output: norm_inputs.append(inputs[0].numel()))
        x = _local(_random(BATCH, LENGTH, HIDDEN, seed=1).requires_grad_(), group, SEQUENCE if sequence else None)
        with count_communication() as counts:
            block(x).sum().backward()
        sent.append(counts.sent_bytes)
    payload = HIDDEN * ACTIVATION_BYTES
    assert sent == [4 * payload * (group.size - 1) / group.size] * 2  # f backward, g forward
    assert norm_inputs[0] == group.size * norm_inputs[1]


def _check_autocast(group: Communicator) -> None:
    """The bias, which stays fp32 under autocast, does not convert the output to fp32."""
    layer = RowParallelLinear(OUT, HIDDEN, group=group)
    _fill(layer, {"weight": _random(HIDDEN, OUT, seed=1), "bias": _random(HIDDEN, seed=2)})
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(_random(BATCH, LENGTH, OUT // group.size, seed=3)).dtype == torch.bfloat16


def _check_all() -> None:
    group = tensor_group()
    for sequence in (False, True):
        for bias in (False, True):
            for blocks in (1, 2):
                _check_column(group, sequence, bias, blocks)
            _check_row(group, sequence, bias)
        _check_embedding(group, sequence)
    _check_bytes_of_a_block(group)
    _check_autocast(group)


@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("size", [2, 4])
def test_layers_equal_torchs(size: int) -> None:
    run(size, _check_all)


def test_in_a_group_of_one_a_layer_equals_torchs_bit_for_bit() -> None:
    x = _random(BATCH, LENGTH, HIDDEN, seed=1)
    for kind in (ColumnParallelLinear, RowParallelLinear):
        plain = nn.Linear(HIDDEN, OUT)
        for sequence in (False, True):
            layer = kind(HIDDEN, OUT, group=SINGLE, sequence_parallel=sequence)
            layer.load_state_dict(plain.state_dict())
            with count_communication() as counts:
                assert torch.equal(layer(x), plain(x))
            assert counts.calls == 0
    table = VocabParallelEmbedding(ROWS, HIDDEN, group=SINGLE)
    nn.init.normal_(table.weight)
    tokens = torch.tensor([[0, ROWS - 1]])
    assert torch.equal(table(tokens), F.embedding(tokens, table.weight))
    with pytest.raises(IndexError):
        table(torch.tensor([ROWS]))


@pytest.mark.parametrize("sequence", [False, True])
def test_described_layers_count_without_processes_or_weights(sequence: bool) -> None:
    """The meta device gives the counts of a real run, for any number of ranks."""
    size, length = 1024, 2048
    group = Communicator(rank=7, size=size)
    with torch.device("meta"):
        model = nn.Sequential(
            ColumnParallelLinear(4096, 16384, group=group, sequence_parallel=sequence),
            RowParallelLinear(16384, 4096, group=group, sequence_parallel=sequence),
        )
        x = torch.empty(1, length // size if sequence else length, 4096, requires_grad=True)
    with count_communication() as counts:
        y = model(x)
        y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and x.grad.is_meta
    assert counts.sent_bytes == 4 * (4 * length * 4096) * (size - 1) / size
    names = {"all_gather", "reduce_scatter"} if sequence else {"all_reduce"}
    assert set(counts.tallies) == names


def test_a_copied_layer_keeps_its_group() -> None:
    group = Communicator(1, 2)
    layer = copy.deepcopy(ColumnParallelLinear(4, 8, group=group))
    assert layer.group is group


def test_the_functional_form_equals_the_layer() -> None:
    """A tied readout passes the weight of the embedding."""
    weight, x = _random(ROWS, HIDDEN, seed=1), _random(BATCH, LENGTH, HIDDEN, seed=2)
    assert torch.equal(column_parallel_linear(x, weight, None, SINGLE, True), F.linear(x, weight))
