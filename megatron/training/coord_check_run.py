"""`coord-check: true`: the coordinate check of the real model, optimizer and schedule, on the real engine."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.architecture import Widths
from megatron.errors import ConfigError
from megatron.initialize import Runtime, seed_all
from megatron.model.build import plan_model
from megatron.neox_arguments import NeoXArgs
from megatron.parametrization.plan import Parametrization
from megatron.tokenizer import Tokenizer, build_tokenizer
from megatron.training.coordinates import gpt_coordinates
from megatron.training.data import RunData
from megatron.training.engine import build_trainee
from megatron.training.from_args import gpt_config, parametrization_of, resolve_base_widths, target_widths
from megatron.training.learning_rates import LearningRateSchedule
from mup.slopes import Verdict, verdict

CHECKED_STEPS = (1, 4)
MAX_CHECK_TOKENS = 512  # a check asks for sizes of activations, not for a good gradient

Record = dict[str, Any]


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a coordinate check on this rank; `passed` is over all ranks."""

    passed: bool
    mup: Verdict
    sp: Verdict
    files: tuple[Path, ...]


def checked_widths(args: NeoXArgs, base: Widths) -> list[int]:
    """Hidden sizes to check: as configured, or base x mup-width-scale^k over at least four and an 8-fold range."""
    if args.coord_check_widths:
        return sorted(args.coord_check_widths)
    sizes = [base.hidden_size]
    while len(sizes) < 4 or sizes[-1] < 8 * sizes[0]:
        sizes.append(sizes[-1] * args.mup_width_scale)
    return sizes


def _check_arguments(args: NeoXArgs, runtime: Runtime) -> NeoXArgs:
    """One microbatch, of the same samples under every layout that can share them out."""
    replicas = runtime.groups.data.size
    samples = min(args.train_batch_size or 1, max(1, MAX_CHECK_TOKENS // args.seq_length))
    micro = max(1, samples // replicas)
    return args.replace(
        train_micro_batch_size_per_gpu=micro,
        gradient_accumulation_steps=1,
        train_batch_size=micro * replicas,
        batch_size=None,
        eval_iters=0,
        do_valid=False,
        do_test=False,
        num_workers=0,
    )


def _fixed_batch(args: NeoXArgs, runtime: Runtime, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """One microbatch of the training data, or of random tokens where no data is configured."""
    if args.data_path is None and args.train_data_paths is None:
        generator = torch.Generator().manual_seed(args.seed)
        shape = (args.train_batch_size, args.seq_length + 1)
        tokens = torch.randint(tokenizer.vocab_size, shape, generator=generator)
        data = runtime.groups.data
        return {"text": tokens.chunk(data.size)[data.rank]}
    return next(RunData(args, runtime, tokenizer.vocab_size, train_iters=1).train_batches())


def _for_check(parametrization: Parametrization, tied: bool) -> Parametrization:
    """The same rules, with what maps to a finite dimension, and the query, starting at zero: their random start
    hides what is learned."""
    options = dataclasses.replace(parametrization.options, readout_zero_init=not tied)
    return dataclasses.replace(parametrization, options=options, query_zero_init=True, value_zero_init=True)


class CoordinateCheck:
    """Trains members of the model's family for a few steps and records the size of their activations."""

    def __init__(self, args: NeoXArgs, runtime: Runtime) -> None:
        self.args, self.runtime = _check_arguments(args, runtime), runtime
        self.tokenizer = build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file)
        self.target = target_widths(args)
        self.base, _ = resolve_base_widths(args, self.target)
        self.batch = _fixed_batch(self.args, runtime, self.tokenizer)
        self.eod = self.tokenizer.eod if args.eod_mask_loss else None
        lr = args.coord_check_lr or args.lr
        if lr is None:
            raise ConfigError("coord-check needs lr (optimizer.params.lr) or coord-check-lr")
        steps = CHECKED_STEPS[-1]
        self.schedule = LearningRateSchedule(lr=lr, decay_iters=steps, decay_style="constant")

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        return itertools.repeat(self.batch)

    def measure(self, use_mup: bool, hidden_size: int, seed: int) -> list[Record]:
        """Records of one model: width, seed, module, t, statistic, value, may_vanish."""
        args = self.args
        widths = self.target.scaled_from(self.base, hidden_size)
        parametrization = parametrization_of(args, widths, self.base)
        if not use_mup:
            options = dataclasses.replace(parametrization.options, mup=False)
            parametrization = dataclasses.replace(parametrization, base=widths, options=options)
        config = gpt_config(args, widths, self.tokenizer.vocab_size)
        plan = plan_model(config, _for_check(parametrization, config.tied_readout))
        seed_all(seed, self.runtime.groups)
        trainee = build_trainee(args, self.runtime, plan, self.schedule, seed, self.eod)
        coordinates = gpt_coordinates(trainee, self.batch)
        records = []
        for t in range(CHECKED_STEPS[-1] + 1):
            if t in (0, *CHECKED_STEPS):
                records += [{"width": hidden_size, "seed": seed, **record} for record in coordinates.measure(t)]
            if t < CHECKED_STEPS[-1]:
                trainee.train_step(self._batches())
        trainee.engine.destroy()
        return records

    def records(self, use_mup: bool) -> list[Record]:
        """Records of all widths and seeds."""
        seeds = [self.args.seed + i for i in range(self.args.coord_check_seeds)]
        sizes = checked_widths(self.args, self.base)
        return [record for size in sizes for seed in seeds for record in self.measure(use_mup, size, seed)]


def _write(folder: Path, rank: int, result: dict[str, tuple[list[Record], Verdict]]) -> tuple[Path, ...]:
    from mup.plot import plot_verdict

    folder.mkdir(parents=True, exist_ok=True)
    titles = {"up": "Coordinate check, muP", "sp": "The same check, standard parametrization"}
    files = []
    for short, (records, outcome) in result.items():
        files.append(folder / f"coord_check_{short}.{rank}.jpg")
        plot_verdict(records, outcome, files[-1], titles[short])
    files.append(folder / f"coord_check.{rank}.csv")
    with files[-1].open("w", newline="") as stream:
        fields = ["parametrization", "module", "width", "seed", "t", "statistic", "value", "may_vanish"]
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        for short, (records, _) in result.items():
            writer.writerows({"parametrization": short, **record} for record in records)
    files.append(folder / f"coord_check.{rank}.json")
    outcomes = {short: outcome.as_dict() for short, (_, outcome) in result.items()}
    files[-1].write_text(json.dumps(outcomes, indent=1))
    return tuple(files)


def run_coord_check(args: NeoXArgs, runtime: Runtime) -> CheckResult:
    """Check muP and, beside it, SP, which must fail. Pictures, CSV and JSON go to log-dir, or here."""
    check = CoordinateCheck(args, runtime)
    up, sp = check.records(use_mup=True), check.records(use_mup=False)
    outcome = verdict(up, reference=sp)
    reference = verdict(sp)
    files = _write(Path(args.log_dir or "."), runtime.rank, {"up": (up, outcome), "sp": (sp, reference)})
    failed = torch.tensor(float(not outcome.passed), device=runtime.device)
    return CheckResult(float(runtime.mean(failed)) == 0.0, outcome, reference, files)
