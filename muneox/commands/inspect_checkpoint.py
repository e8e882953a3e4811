"""Describe and verify a checkpoint: its steps and whether they are intact, its parameters, its muP section.

    python tools/ckpts/inspect_checkpoint.py checkpoints [--iteration 1000] [--no-statistics]

The exit code is 0 if every step is intact, and 1 if there is no step or one is damaged; the damaged file is named.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from megatron.checkpointing import Layout, LoadedWeights, has_no_manifest, load_weights, step_directories, verify
from megatron.checkpointing.layout import locate, read_latest
from megatron.errors import CheckpointError
from megatron.mappings import flatten


def main(input_args: Sequence[str] | None = None) -> int:
    """Print the tables. Returns the exit code. Raises CheckpointError if there is no checkpoint."""
    args = _parse(input_args)
    console = Console()
    save_dir, iteration = locate(args.directory, args.iteration)
    steps = step_directories(save_dir)
    if iteration is not None and iteration in steps:
        steps = {iteration: steps[iteration]}
    elif iteration is not None or not steps:
        raise CheckpointError(f"{args.directory} holds no checkpoint" + (f" of step {iteration}" if iteration else ""))
    of_neox = [step for step, path in steps.items() if has_no_manifest(path)]
    problems = {step: [] if step in of_neox else verify(path) for step, path in steps.items()}
    console.print(_step_table(save_dir, steps, problems))
    if of_neox:
        console.print("saved by GPT-NeoX, which records no hashes to verify", highlight=False)
    for problem in (p for found in problems.values() for p in found):
        console.print(f"[red]damaged[/red] {problem}", soft_wrap=True, highlight=False)
    intact = [step for step, found in problems.items() if not found]
    if intact:
        latest = read_latest(save_dir)
        _print_contents(console, load_weights(save_dir, latest if latest in intact else intact[-1]), args.statistics)
    return 1 if any(problems.values()) else 0


def _parse(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="a save directory, or one of its global_step{N}")
    parser.add_argument("--iteration", type=int, help="only this step (default: all, and the parameters of the latest)")
    parser.add_argument("--no-statistics", dest="statistics", action="store_false", help="skip mean and std: faster")
    return parser.parse_args(input_args)


def _print_contents(console: Console, loaded: LoadedWeights, statistics: bool) -> None:
    console.print(_parameter_table(loaded, statistics))
    mup = loaded.client_state.get("mup")
    if mup:
        console.print(_mup_table(mup))
    layout = loaded.client_state.get("layout")
    if layout:
        console.print(f"saved under {Layout.from_section(layout).describe()}", highlight=False)
    rest = {key: value for key, value in loaded.client_state.items() if key not in ("mup", "layout")}
    for key, value in rest.items():
        console.print(f"{key}: {value}", highlight=False, soft_wrap=True)
    if loaded.configs:
        console.print(f"configs: {', '.join(loaded.configs)}", highlight=False, soft_wrap=True)


def _step_table(save_dir: Path, steps: Mapping[int, Path], problems: Mapping[int, list[str]]) -> Table:
    table = Table(title=str(save_dir), title_justify="left")
    for name in ("step", "intact", "files", "MiB", "latest"):
        table.add_column(name, justify="right")
    latest = read_latest(save_dir)
    for step, path in steps.items():
        files = [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 2**20
        state = "[red]no[/red]" if problems[step] else "[green]yes[/green]"
        table.add_row(str(step), state, str(len(files)), f"{size:.2f}", "*" if step == latest else "")
    return table


def _parameter_table(loaded: LoadedWeights, statistics: bool) -> Table:
    tensors = {name: value for name, value in loaded.weights.items() if isinstance(value, torch.Tensor)}
    total = sum(tensor.numel() for tensor in tensors.values())
    table = Table(title=f"step {loaded.iteration}: {total:,} parameters", title_justify="left")
    table.add_column("parameter", overflow="fold")
    for name in ("shape", "dtype", *(("mean", "std") if statistics else ())):
        table.add_column(name, justify="right")
    for name, tensor in tensors.items():
        row = [name, " x ".join(map(str, tensor.shape)) or "scalar", str(tensor.dtype).removeprefix("torch.")]
        table.add_row(*row, *(_statistics(tensor) if statistics else ()))
    return table


def _statistics(tensor: torch.Tensor) -> tuple[str, str]:
    if tensor.numel() == 0:
        return "-", "-"
    values = tensor.float()
    return f"{values.mean():.3e}", f"{values.std(correction=0):.3e}"


def _mup_table(mup: Mapping[str, Any]) -> Table:
    table = Table(title="muP", title_justify="left")
    table.add_column("name", overflow="fold")
    table.add_column("value", justify="right")
    for name, value in flatten(mup).items():
        table.add_row(name, str(value))
    return table
