"""The report of a dry run as text."""

from __future__ import annotations

import io
from itertools import groupby

from rich.console import Console
from rich.table import Table

from megatron.dry_run.run import DryRun, RankEstimate

GIB = 2**30


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _layers(names: tuple[str, ...]) -> str:
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("layers.")]
    other = [name.replace("_", " ") for name in names if not name.startswith("layers.")]
    before = [name for name in other if name == "embedding"]
    after = [name for name in other if name != "embedding"]
    return ", ".join([*before, *([f"blocks {_span(blocks)}"] if blocks else []), *after])


def _rows(ranks: tuple[RankEstimate, ...]) -> list[tuple[RankEstimate, str]]:
    """One row per stage and per group of tensor-parallel ranks with equal needs."""
    rows = []
    for _, group in groupby(ranks, key=lambda rank: (rank.part.pipe, rank.part.parameters, rank.memory)):
        same = list(group)
        rows.append((same[0], _span([rank.part.tensor for rank in same])))
    return rows


def _rank_table(result: DryRun) -> Table:
    table = Table(title="per rank (data-parallel replicas are equal)", title_justify="left")
    for heading in ("stage", "TP rank", "layers"):
        table.add_column(heading)
    for heading in ("parameters", "weights", "gradients", "optimizer", "activations", "total GiB", "sent GiB/step"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rank, tensor in _rows(result.ranks):
        m = rank.memory
        sizes = [f"{size / GIB:.2f}" for size in (m.weights, m.gradients, m.optimizer, m.activations, m.total)]
        sent = sum(size for _, size in rank.traffic.entries.values()) / GIB
        table.add_row(
            str(rank.part.pipe), tensor, _layers(rank.part.layers), f"{rank.part.parameters:,}", *sizes, f"{sent:.2f}"
        )
    return table


def _traffic_table(result: DryRun) -> Table:
    table = Table(title="communication per step", title_justify="left")
    for heading in ("group", "collective"):
        table.add_column(heading)
    for heading in ("calls, busiest rank", "GiB, busiest rank", "GiB, all ranks"):
        table.add_column(heading, justify="right")
    keys = sorted({key for rank in result.ranks for key in rank.traffic.entries})
    for group, collective in keys:
        entries = [rank.traffic.entries.get((group, collective), (0, 0.0)) for rank in result.ranks]
        calls, most = max(entries, key=lambda entry: entry[1])
        total = sum(size for _, size in entries) * result.run.grid.data
        table.add_row(group, collective, f"{calls:,}", f"{most / GIB:.2f}", f"{total / GIB:,.2f}")
    return table


def report(result: DryRun) -> str:
    """The text that `--dry-run` prints."""
    run, grid, step, hardware = result.run, result.run.grid, result.step, result.hardware
    everything = sum(rank.memory.total for rank in result.ranks) * grid.data
    most = max(rank.memory.total for rank in result.ranks)
    tflops = run.flops_per_step / step.total / grid.world_size / 1e12
    config = result.plan.config
    active = "" if config.experts is None else f", {result.plan.num_active_parameters:,} active per token"
    text = io.StringIO()
    console = Console(file=text, width=160)
    console.print(
        f"layout: tensor {grid.tensor} x pipe {grid.pipe} x data {grid.data} = {grid.world_size} processes, "
        f"ZeRO {run.zero_stage}\n"
        f"parameters: {result.parameters:,} ({result.stored:,} stored, with the vocabulary of {config.vocab_size:,} "
        f"({result.vocabulary}) padded to {config.padded_vocab_size:,}){active}\n"
        f"checked: the shards of {len(result.ranks)} ranks make up the model, and every width multiplier equals the "
        "global one",
        highlight=False,
    )
    console.print(_rank_table(result))
    console.print(_traffic_table(result))
    console.print(
        f"memory: {most / GIB:.1f} GiB on the fullest rank, {everything / GIB:,.0f} GiB in total (estimated, without "
        "fragmentation, buffers of the communication library and the context of the GPU)\n"
        f"step: {result.tokens_per_step:,} tokens, {run.flops_per_step:.3g} FLOPs\n"
        f"predicted on {hardware.name} ({hardware.peak_tflops:g} TFLOP/s at {hardware.efficiency:.0%}, "
        f"{hardware.inside_host / 1e9:.0f} GB/s inside a host of {hardware.gpus_per_host}, "
        f"{hardware.between_hosts / 1e9:.0f} GB/s between hosts, without overlap): {step.total:.2f} s = "
        f"{step.compute:.2f} compute + {step.bubble:.2f} pipeline bubble + {step.communication:.2f} communication; "
        f"{tflops:.0f} TFLOP/s per GPU, {tflops / hardware.peak_tflops:.0%} of peak",
        highlight=False,
        soft_wrap=True,
    )
    return text.getvalue()
