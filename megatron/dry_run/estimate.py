"""Memory, communication and time of one rank, computed from the measured costs of its layers.

Sources: optimizer states and ZeRO, Rajbhandari et al., arXiv:1910.02054, section 5 and 7; microbatches in flight of
1F1B and its bubble, Narayanan et al., arXiv:2104.04473, section 2.2; activations, Korthikanti et al., arXiv:2205.05198,
section 4, but counted by running the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron.dry_run.layers import LayerCost
from megatron.dry_run.model import RankPart
from megatron.mpu import CommunicationCounts, sent_bytes
from megatron.mpu.topology import Grid

MASTER_BYTES = 4  # fp32


@dataclass(frozen=True)
class Run:
    """The values of a run that the estimates need.

    element_bytes: bytes per weight or activation, 4 or 2. moments: fp32 numbers that the optimizer keeps per parameter
    (2 for Adam). microbatches: number per step. checkpoint_every: blocks between kept activations, 0 without
    recomputation.
    """

    grid: Grid
    zero_stage: int
    element_bytes: int
    moments: int
    microbatches: int
    checkpoint_every: int
    flops_per_step: float


@dataclass(frozen=True)
class Memory:
    """Memory of one rank in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def is_block(layer: str) -> bool:
    return layer.startswith("layers.")


def _held_bytes(layer: str, costs: Mapping[str, LayerCost]) -> int:
    return costs[layer].peak_bytes if layer == "readout" else costs[layer].saved_bytes


def activation_bytes(layers: Sequence[str], costs: Mapping[str, LayerCost], checkpoint_every: int) -> float:
    """Peak bytes of the activations of one microbatch on a stage with these layers.

    The peak is at the start of the backward pass of the loss: the activations of all layers are in memory, and the
    readout holds several copies of the logits. With recomputation, every span of blocks keeps only its input, and the
    activations of one span at a time are in memory.
    """
    blocks = [layer for layer in layers if is_block(layer)]
    others = sum(_held_bytes(layer, costs) for layer in layers if not is_block(layer))
    saved = [costs[block].saved_bytes for block in blocks]
    if not checkpoint_every:
        return float(others + sum(saved))
    spans = range(0, len(blocks), checkpoint_every)
    inputs = sum(costs[blocks[start]].output_bytes for start in spans)
    return float(others + inputs + max((sum(saved[start : start + checkpoint_every]) for start in spans), default=0))


def memory(part: RankPart, costs: Mapping[str, LayerCost], run: Run) -> Memory:
    """Memory of weights and gradients in the training precision, optimizer states and activations.

    The optimizer states are the moments and, in half precision, fp32 master weights. ZeRO 1 partitions the optimizer
    states over the data-parallel ranks, ZeRO 2 also the gradients, ZeRO 3 also the weights.
    """
    share = {stage: run.grid.data if run.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    master = MASTER_BYTES if run.element_bytes < MASTER_BYTES else 0
    in_flight = min(run.grid.pipe - part.pipe, run.microbatches)
    kept = activation_bytes(part.layers, costs, run.checkpoint_every)
    shared = max((costs[layer].shared_bytes for layer in part.layers), default=0)
    return Memory(
        weights=part.parameters * run.element_bytes / share[3],
        gradients=part.parameters * run.element_bytes / share[2],
        optimizer=part.parameters * (master + MASTER_BYTES * run.moments) / share[1],
        activations=kept * in_flight + shared,
    )


@dataclass(frozen=True)
class Traffic:
    """Number of calls and bytes that one rank sends per step, by (group, collective)."""

    entries: Mapping[tuple[str, str], tuple[int, float]]

    def bytes_over(self, group: str) -> float:
        return sum(size for (over, _), (_, size) in self.entries.items() if over == group)


def _add(entries: dict[tuple[str, str], tuple[int, float]], key: tuple[str, str], calls: int, size: float) -> None:
    if calls and size:
        before = entries.get(key, (0, 0.0))
        entries[key] = (before[0] + calls, before[1] + size)


def _add_counts(entries: dict[tuple[str, str], tuple[int, float]], counts: CommunicationCounts, times: int) -> None:
    for collective, tally in counts.tallies.items():
        _add(entries, ("tensor", collective), tally.calls * times, tally.sent_bytes * times)


def traffic(part: RankPart, costs: Mapping[str, LayerCost], run: Run) -> Traffic:
    """Communication of this rank in one step.

    tensor: the counted collectives of the layers; recomputation repeats those of the forward pass. pipe: for each
    microbatch, hidden states forward and their gradients backward. data: ZeRO 0 all-reduces the gradients. ZeRO 1
    all-reduces and ZeRO 2 reduce-scatters them, and both gather the updated weights. ZeRO 3 gathers the weights for
    each forward and backward pass and reduce-scatters the gradients.
    """
    entries: dict[tuple[str, str], tuple[int, float]] = {}
    for layer in part.layers:
        cost = costs[layer]
        again = 2 if run.checkpoint_every and is_block(layer) else 1
        _add_counts(entries, cost.forward, run.microbatches * again)
        _add_counts(entries, cost.backward, run.microbatches)
    hidden = costs["final_norm"].output_bytes
    neighbours = (part.pipe > 0) + (part.pipe < run.grid.pipe - 1)
    _add(entries, ("pipe", "send"), run.microbatches * neighbours, float(run.microbatches * neighbours * hidden))
    size, replicas = part.parameters * run.element_bytes, run.grid.data
    passes = {
        0: {"all_reduce": 1},
        1: {"all_reduce": 1, "all_gather": 1},
        2: {"reduce_scatter": 1, "all_gather": 1},
        3: {"reduce_scatter": run.microbatches, "all_gather": 2 * run.microbatches},
    }[run.zero_stage]
    for collective, times in passes.items():
        _add(entries, ("data", collective), times, times * sent_bytes(collective, size, replicas))
    return Traffic(entries)


@dataclass(frozen=True)
class Hardware:
    """A GPU and its links.

    inside_host, between_hosts: bytes per second of one GPU in one direction. efficiency: share of the peak that dense
    matrix products of this size reach.
    """

    name: str
    peak_tflops: float
    efficiency: float = 0.5
    inside_host: float = 200e9
    between_hosts: float = 25e9
    gpus_per_host: int = 8


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of the slowest rank: compute, pipeline bubble and communication."""

    compute: float
    bubble: float
    communication: float

    @property
    def total(self) -> float:
        return self.compute + self.bubble + self.communication


def step_time(slowest: Traffic, run: Run, hardware: Hardware) -> StepTime:
    """Predict the time of a step roughly: nothing overlaps, and every rank computes an equal share.

    Tensor-parallel traffic stays inside a host if the group fits into it. Other traffic goes between hosts unless all
    ranks fit into one. The bubble is (p - 1) / m of the time of the microbatches, for p stages and m microbatches.
    """
    repeat = 4 / 3 if run.checkpoint_every else 1.0  # one more forward pass
    compute = run.flops_per_step * repeat / run.grid.world_size / (hardware.peak_tflops * 1e12 * hardware.efficiency)
    one_host = run.grid.world_size <= hardware.gpus_per_host
    inside = {
        "tensor": run.grid.tensor <= hardware.gpus_per_host,
        "pipe": one_host,
        "data": one_host,
    }
    speed = {group: hardware.inside_host if near else hardware.between_hosts for group, near in inside.items()}
    communication = sum(slowest.bytes_over(group) / speed[group] for group in speed)
    bubble = (compute + slowest.bytes_over("tensor") / speed["tensor"]) * (run.grid.pipe - 1) / run.microbatches
    return StepTime(compute, bubble, communication)
