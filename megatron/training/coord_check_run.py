"""`coord-check: true`: the coordinate check of the configured model, optimizer and schedule on DeepSpeed's engine."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.architecture import Widths
from megatron.errors import ConfigError, TrainingError
from megatron.initialize import Runtime, seed_all
from megatron.model.build import plan_model
from megatron.model.moe import expert_layers, route_by_position
from megatron.neox_arguments.job_configs import CoordinateCheckConfig
from megatron.neox_arguments.run_config import BatchConfig, ScheduleConfig
from megatron.parametrization.plan import Parametrization
from megatron.tokenizer import build_tokenizer
from megatron.training.coordinates import gpt_coordinates
from megatron.training.data import RunData
from megatron.training.engine import build_train_module
from megatron.training.model_from_config import gpt_config, make_parametrization, resolve_base_widths
from megatron.training.objective import Batch, masked_token
from mup import slopes
from mup.slopes import Verdict, verdict

CHECKED_STEPS = (1, 4)
OUTPUTS = ("readout",)  # modules whose weights have a gradient in the first step
MAX_CHECK_TOKENS = 512  # a check measures sizes of activations and needs no accurate gradient

Record = dict[str, Any]


@dataclass(frozen=True)
class CheckResult:
    """Result of a coordinate check on this rank. `passed` is the result over all ranks."""

    passed: bool
    mup: Verdict
    sp: Verdict
    files: tuple[Path, ...]


def checked_widths(config: CoordinateCheckConfig, base: Widths) -> list[int]:
    """Hidden sizes to check: as configured, otherwise base x mup-width-scale^k, at least four over an 8-fold range."""
    if config.hidden_sizes:
        return list(config.hidden_sizes)
    sizes = [base.hidden_size]
    while len(sizes) < 4 or sizes[-1] < 8 * sizes[0]:
        sizes.append(sizes[-1] * config.width_scale)
    return sizes


def require_power(config: CoordinateCheckConfig, base: Widths) -> None:
    """Raise ConfigError, before any model is trained, if widths or seeds are too few for a verdict."""
    sizes = sorted(set(checked_widths(config, base)))
    for size in sizes:
        config.model.widths.scaled_from(base, size)  # raises if heads do not fit
    try:
        slopes.require_power(sizes, config.seeds)
    except ValueError as error:
        raise ConfigError(f"coord_check: {error}; see coord_check_widths and coord_check_seeds") from error


def _fixed_key_value_heads(family: Widths, base: Widths) -> bool:
    """Whether keys and values grow more slowly than the model. family: the widths of a model of another size."""
    size, base_size = (widths.num_kv_heads * widths.head_dim for widths in (family, base))
    return size * base.hidden_size < base_size * family.hidden_size


def _check_batch(config: CoordinateCheckConfig, replicas: int) -> BatchConfig:
    """Sizes of one microbatch with the same samples under every layout, if the replicas divide their number."""
    samples = min(config.batch_size, max(1, MAX_CHECK_TOKENS // config.model.seq_length))
    micro = max(1, samples // replicas)
    return BatchConfig(size=micro * replicas, micro=micro, accumulation=1)


def _fixed_batch(config: CoordinateCheckConfig, runtime: Runtime, vocab_size: int, batch: BatchConfig) -> Batch:
    """One microbatch of the training data, or of random tokens if no data is configured."""
    if config.data is None:
        generator = torch.Generator().manual_seed(config.seeds[0])
        tokens = torch.randint(vocab_size, (batch.size, config.model.seq_length + 1), generator=generator)
        replicas = runtime.groups.data
        return {"text": tokens.chunk(replicas.size)[replicas.rank]}
    data = dataclasses.replace(config.data, num_workers=0)
    return next(RunData(data, runtime, vocab_size, batch, (batch.size, 0, 0)).train_batches())


def _for_check(parametrization: Parametrization, tied: bool, fixed_values: bool) -> Parametrization:
    """The same rules, but queries and all matrices to a finite dimension start at zero, at every width.

    A random start would hide what they learn. fixed_values: whether values are such matrices in this family of models.
    """
    options = dataclasses.replace(parametrization.options, readout_zero_init=not tied)
    return dataclasses.replace(parametrization, options=options, query_zero_init=True, value_zero_init=fixed_values)


def _with_a_gradient(records: list[Record], t: int, outputs: Container[str], tied: bool) -> list[Record]:
    """Records of the modules that have had a gradient after t steps.

    Below a readout that starts at zero the first gradient is zero. After one step only weight decay has changed the
    weights there, and its size says nothing about learning.
    """
    return records if t != 1 or tied else [record for record in records if record["module"] in outputs]


def compressed(schedule: ScheduleConfig) -> ScheduleConfig:
    """The schedule of a run in the four updates of the check.

    Warm-up and cool-down take two updates each, so that each of them has an update below the peak rate.
    """
    return dataclasses.replace(
        schedule,
        decay_iters=CHECKED_STEPS[-1],
        warmup_iters=2 if schedule.warmup_iters else 0,
        cooldown_iters=2 if schedule.cooldown_iters else 0,
    )


class CoordinateCheck:
    """Trains models of several widths for a few steps and records the size of their activations."""

    def __init__(self, config: CoordinateCheckConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        tokenizer = build_tokenizer(*config.tokenizer)
        self.vocab_size = tokenizer.vocab_size
        self.masked_token = masked_token(config.engine.loss, tokenizer)
        self.base, _ = resolve_base_widths(config.model)
        require_power(config, self.base)
        self.batch_sizes = _check_batch(config, runtime.groups.data.size)
        self.batch = _fixed_batch(config, runtime, self.vocab_size, self.batch_sizes)
        self.schedule = compressed(config.schedule)

    def _batches(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch)

    def measure(self, use_mup: bool, hidden_size: int, seed: int) -> list[Record]:
        """Records of one model: width, seed, module, t, statistic, value, may_vanish."""
        model = self.config.model
        widths = model.widths.scaled_from(self.base, hidden_size)
        parametrization = make_parametrization(model.parametrization, widths, self.base)
        if not use_mup:
            options = dataclasses.replace(parametrization.options, mup=False)
            parametrization = dataclasses.replace(parametrization, base=widths, options=options)
        gpt = gpt_config(model, widths, self.vocab_size)
        sizes = checked_widths(self.config, self.base)
        narrow, wide = (model.widths.scaled_from(self.base, size) for size in (min(sizes), max(sizes)))
        fixed_values = _fixed_key_value_heads(wide, narrow)
        plan = plan_model(gpt, _for_check(parametrization, gpt.tied_readout, fixed_values))
        seed_all(seed, self.runtime.groups)
        module = build_train_module(
            self.config.engine, self.runtime, plan, self.schedule, self.batch_sizes, seed, self.masked_token
        )
        for layer in expert_layers(module.model):
            layer.route = route_by_position
        coordinates = gpt_coordinates(module, self.batch)
        records = []
        for t in range(CHECKED_STEPS[-1] + 1):
            if t in (0, *CHECKED_STEPS):
                found = _with_a_gradient(coordinates.measure(t), t, OUTPUTS, gpt.tied_readout)
                records += [{"width": hidden_size, "seed": seed, **record} for record in found]
            if t < CHECKED_STEPS[-1]:
                outcome = module.train_step(self._batches())
                if outcome.fault is not None:
                    raise TrainingError(f"{outcome.fault.value} at step {t + 1} of width {hidden_size}: lower the rate")
        module.engine.destroy()
        return records

    def records(self, use_mup: bool) -> list[Record]:
        """Records of all widths and seeds. The first process prints a line per width, since a check takes minutes."""
        sizes, records = checked_widths(self.config, self.base), list[Record]()
        for count, size in enumerate(sizes, 1):
            for seed in self.config.seeds:
                records += self.measure(use_mup, size, seed)
            if self.runtime.is_first:
                rule = "muP" if use_mup else "SP"
                print(f"coordinate check: {rule}, width {size} measured ({count} of {len(sizes)})", flush=True)
        return records


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


def run_coord_check(config: CoordinateCheckConfig, runtime: Runtime) -> CheckResult:
    """Check muP, with SP as the reference that must fail. Writes plots, CSV and JSON to `config.output`."""
    check = CoordinateCheck(config, runtime)
    up, sp = check.records(use_mup=True), check.records(use_mup=False)
    outcome = verdict(up, reference=sp)
    reference = verdict(sp)
    files = _write(config.output, runtime.rank, {"up": (up, outcome), "sp": (sp, reference)})
    failed = torch.tensor(float(not outcome.passed), device=runtime.device)
    return CheckResult(float(runtime.mean(failed)) == 0.0, outcome, reference, files)
