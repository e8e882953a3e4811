"""Describe and verify a checkpoint: its steps and whether they are intact, its parameters, its muP section.

    python tools/ckpts/inspect_checkpoints.py checkpoints [--iteration 1000] [--no-statistics]
    python tools/ckpts/inspect_checkpoints.py checkpoints --attributes mup/base consumed_samples
    python tools/ckpts/inspect_checkpoints.py first,second --compare [--diff]

The exit code is 0 if every step is intact, and 1 if there is no step or one is damaged; the damaged file is named. With
--compare it is 1 if a weight differs.
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
from megatron.command_help import command_parser
from megatron.errors import CheckpointError
from megatron.mappings import flatten


def main(input_args: Sequence[str] | None = None) -> int:
    """Print the tables. Returns the exit code. Raises CheckpointError if there is no checkpoint."""
    args = _parse(input_args)
    console = Console()
    if args.compare:
        return _compare(console, args.directory, args.diff)
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
        loaded = load_weights(save_dir, latest if latest in intact else intact[-1])
        if args.attributes is None:
            _print_contents(console, loaded, args.statistics)
        for name in args.attributes or ():
            console.print(f"{name}: {_attribute(loaded, name)}", highlight=False, soft_wrap=True)
    return 1 if any(problems.values()) else 0


def _parse(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "`muneox generate --load DIRECTORY`, or `muneox eval --load DIRECTORY`.")
    parser.add_argument(
        "directory", type=Path, help="a save directory, or one of its global_step{N}; two, with a comma, for --compare"
    )
    parser.add_argument("--attributes", nargs="*", help="show only these entries, such as mup/base, and no parameters")
    parser.add_argument("--compare", "-c", action="store_true", help="compare the weights of two checkpoints")
    parser.add_argument("--diff", "-d", action="store_true", help="with --compare: show only weights that differ")
    parser.add_argument("--iteration", type=int, help="only this step (default: all, and the parameters of the latest)")
    parser.add_argument("--no-statistics", dest="statistics", action="store_false", help="skip mean and std: faster")
    return parser.parse_args(input_args)


def _attribute(loaded: LoadedWeights, name: str) -> Any:
    """Entry of the checkpoint's state under a path such as `mup/base`. Raises CheckpointError."""
    found: Any = loaded.client_state
    for part in name.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            known = ", ".join(map(str, found)) if isinstance(found, Mapping) else "no more entries"
            raise CheckpointError(f"--attributes: {name}: there is no {part!r}; there are {known}")
        found = found[part]
    return found


def _compare(console: Console, directories: Path, only_differing: bool) -> int:
    """Print the largest difference of every weight of two checkpoints. Returns 1 if one differs."""
    names = str(directories).split(",")
    if len(names) != 2:
        raise CheckpointError(f"--compare: expected two directories with a comma between them, got {directories}")
    first, second = (load_weights(*locate(Path(name), None)).weights for name in names)
    table = Table(title=f"{names[0]} and {names[1]}", title_justify="left")
    table.add_column("parameter", overflow="fold")
    table.add_column("largest difference", justify="right")
    differing = 0
    for name in [*first, *(name for name in second if name not in first)]:
        difference = _difference(first.get(name), second.get(name))
        differing += difference != "0"
        if difference != "0" or not only_differing:
            table.add_row(name, difference)
    console.print(table)
    console.print(f"{differing} weights differ", highlight=False)
    return int(differing > 0)


def _difference(a: torch.Tensor | None, b: torch.Tensor | None) -> str:
    if a is None or b is None:
        return "only in the second" if a is None else "only in the first"
    if a.shape != b.shape:
        return f"{list(a.shape)} and {list(b.shape)}"
    largest = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    return f"{largest:.3e}" if largest else "0"


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
