"""Train a grid of runs: widths x seeds x values of any keys, in warm processes, with one folder per run.

    python tools/mup/sweep.py configs/mup/base.yml configs/local_setup.yml --widths 64 128 256 --seeds 1 2 \\
        --grid lr=2^-9,2^-8,2^-7,2^-6 --workers 2 --out runs/sweep
    python tools/mup/sweep.py configs/mup/base.yml configs/local_setup.yml best.yml --widths 64 96 128 192 \\
        --seeds 1 2 3 --out runs/ladder                                      # a ladder with the result of a search
    python tools/mup/sweep.py ... --use-mup false --out runs/sweep_sp        # the same in standard parametrization

Widths scale the configuration as in a search: the number of heads grows if mup-base-num-attention-heads is set. Any
key can be set on the command line (`--train-iters 300`). Run again, the command trains the missing runs.
lr_landscape.py, width_check.py and predict_loss.py read the folder.
"""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, TrainingError, UserError
from megatron.mappings import differences
from megatron.monitoring.jsonl import read_metrics, to_plain
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import run_config
from megatron.neox_arguments.yaml_loader import parse_scalar
from megatron.processes import counter, process_pool, share_machine
from muneox.arguments import config_parser
from muneox.runs import describe_corpus
from muneox.search.proxy import TrialRun, corpus_of, runs_of, trial_args
from muneox.search.space import parse_space


@dataclass(frozen=True)
class Job:
    """One run and its log folder."""

    run: TrialRun
    args: NeoXArgs

    @property
    def folder(self) -> Path:
        return Path(self.args.log_dir or "")

    def is_finished(self) -> bool:
        """Whether the folder holds the finished run. Raises ConfigError if it holds another configuration's run."""
        file = self.folder / "metrics.jsonl"
        if not file.is_file():
            return False
        header, records = read_metrics(file)
        for key, there, ours in differences(header.get("config", {}), to_plain(self.args.to_dict())):
            if key.partition(".")[0] not in _INDIFFERENT:
                raise ConfigError(
                    f"{self.folder} holds a run with {key} {there!r}, this sweep has {ours!r}; choose another --out"
                )
        corpus = header.get("corpus") or {}
        own = corpus_of(self.args)
        if corpus.get("sha256") != own["sha256"]:
            raise ConfigError(
                f"{self.folder} holds a run on {describe_corpus(corpus.get('sha256'), corpus.get('bytes'))}, and this "
                f"sweep's corpus has {describe_corpus(own['sha256'], own['bytes'])}; choose another --out"
            )
        return any(record["step"] == self.args.train_iters for record in records)


_INDIFFERENT = {"log_dir", "config_files", "num_workers"}


def jobs(args: NeoXArgs, grid: Mapping[str, Sequence[Any]], widths: Sequence[int], seeds: Sequence[int],
         out: Path) -> list[Job]:  # fmt: skip
    """All runs of the sweep, widest first, so that processes end at about the same time. Raises ConfigError."""
    parameters = {key: list(values) for key, values in grid.items()} or {"lr": [args.lr]}
    space = parse_space(
        {"sampler": "grid", "parameters": parameters, "widths": list(widths) or None, "seeds": list(seeds) or None},
        args,
    )
    made = []
    for values in itertools.product(*(parameter.grid_values() for parameter in space.parameters)):
        params = {parameter.key: value for parameter, value in zip(space.parameters, values)} if grid else {}
        for run in runs_of(args, space):
            name = "-".join([run.name, *(f"{key}={_short(value)}" for key, value in params.items())])
            made.append(Job(run, trial_args(args, params, run, out / name)))
    return sorted(made, key=lambda job: (-job.run.hidden_size, job.run.seed))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `lr=2^-9,2^-8` to {"lr": [0.00195..., 0.0039...]}. Raises ConfigError."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise ConfigError(f"--grid {text}: expected KEY=VALUE,VALUE, for example lr=2^-9,2^-8")
        if key in grid:
            raise ConfigError(f"--grid {key} is given twice")
        grid[key] = [_value(value.strip()) for value in values.split(",")]
    return grid


def _value(text: str) -> Any:
    power = re.fullmatch(r"2\^([+-]?\d+)", text)
    return 2.0 ** int(power[1]) if power else parse_scalar(text)


def train_job(job: Job) -> tuple[Job, float | None, str]:
    """Train one run. Returns its loss, or None and the error message if it diverged."""
    from megatron.initialize import start_worker
    from megatron.training.trainer import train

    shutil.rmtree(job.folder, ignore_errors=True)  # left over from a killed process
    try:
        config = run_config(job.args)
        result = train(config, start_worker(config.launch, config.engine.layout, config.seed), console=False)
    except TrainingError as error:
        return job, None, str(error)
    if result.interrupted:
        raise KeyboardInterrupt
    return job, result.loss, ""


def sweep(todo: Sequence[Job], workers: int) -> int:
    """Train the jobs and print each result. Returns how many diverged. Raises UserError if a process is killed."""
    workers = min(workers, len(todo))
    began, diverged = time.monotonic(), 0
    died = UserError("a process was killed; run the same command again to train the missing runs")
    with process_pool(workers, share_machine, counter(), workers, died=died) as pool:
        futures = [pool.submit(train_job, job) for job in todo]
        for done, future in enumerate(as_completed(futures), start=1):
            job, loss, error = future.result()
            diverged += loss is None
            outcome = f"loss {loss:.4f}" if loss is not None else f"diverged: {error}"
            print(f"[{done}/{len(todo)}, {time.monotonic() - began:,.0f} s] {job.folder.name}: {outcome}", flush=True)
    return diverged


def main(input_args: Sequence[str] | None = None) -> int:
    """Train the missing runs. Returns exit code 0, also if runs diverged: the tools that read the runs report them."""
    parser = config_parser(
        __doc__, following="`muneox width-check OUT`, then `muneox predict-loss OUT --y valid/loss`."
    )
    add = parser.add_argument
    add("--widths", type=int, nargs="+", default=[], help="hidden sizes (default: the configuration's)")
    add("--seeds", type=int, nargs="+", default=[], help="seeds (default: the configuration's)")
    add("--grid", action="append", default=[], metavar="KEY=V,V", help="values of a key; repeatable: their product")
    add("--workers", type=int, default=1, help="number of worker processes on this host")
    add("--out", type=Path, default=Path("runs/sweep"), help="folder for the runs' folders")
    options, rest = parser.parse_known_args(input_args)
    if options.workers < 1:
        raise ConfigError(f"--workers: expected an integer >= 1, got {options.workers}")
    args = NeoXArgs.consume_neox_args(input_args=rest).replace(world_size=1)
    args.require("lr", "train_iters", "hidden_size", "num_attention_heads", "seq_length")
    wanted = jobs(args, parse_grid(options.grid), options.widths, options.seeds, options.out)
    todo = [job for job in wanted if not job.is_finished()]
    print(f"{len(wanted)} runs in {options.out}, {len(wanted) - len(todo)} of them already finished", flush=True)
    try:
        diverged = sweep(todo, options.workers) if todo else 0
    except KeyboardInterrupt:
        print("interrupted: the same command trains the missing runs", flush=True)
        raise
    if diverged:
        print(f"{diverged} runs diverged")
    return 0
