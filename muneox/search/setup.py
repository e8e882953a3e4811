"""Command line of a search. The leading process and its workers parse the same one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.yaml_loader import SHIPPED_CONFIGS
from muneox.arguments import config_parser
from muneox.search.samplers import grid_size
from muneox.search.space import Space, load_space

DEFAULT_SPACE = SHIPPED_CONFIGS / "mup" / "space.yml"


@dataclass(frozen=True)
class Setup:
    """A search: the proxy's configuration, the space, the location of the study and the options.

    proxy: the arguments of the command line that configure the proxy, files first.
    """

    args: NeoXArgs
    space: Space
    trials: int
    study: str
    name: str
    out: Path
    workers: int
    confirm_top: int
    confirm_seeds: int
    stale_after: float
    proxy: tuple[str, ...]
    target_files: tuple[str, ...]
    argv: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        assert self.args.train_iters is not None, "check_space requires train_iters"
        return self.args.train_iters

    def target(self) -> NeoXArgs | None:
        """The target's configuration, or None without --target."""
        return NeoXArgs.from_ymls(self.target_files, world_size=1) if self.target_files else None


def parser() -> argparse.ArgumentParser:
    """Parser for the options of the search. All other arguments belong to the configuration."""
    made = config_parser(
        """Search hyperparameters on a muP proxy for a target that is too large to search on.

    muneox search configs/mup/base.yml configs/local_setup.yml --trials 24 --workers 2 \\
        --target configs/mup/target.yml configs/local_setup.yml

Writes OUT/best.yml, for `muneox train TARGET.yml OUT/best.yml`. A search that is stopped continues when the same
command runs again. The same command on another host joins it.""",
        following="`muneox sweep PROXY... OUT/best.yml --widths ...` trains a ladder with the result.",
    )
    add = made.add_argument
    add("--space", type=Path, default=DEFAULT_SPACE, help="space file; default: configs/mup/space.yml (TP-V, F.4)")
    add("--trials", type=int, help="number of trials; default for a grid: all points")
    add("--study", help="FILE (SQLite), FILE.journal, or postgresql://...; default: OUT/study.db")
    add("--study-name", default="search", help="name in the study's file or database")
    add("--out", type=Path, default=Path("runs/search"), help="folder for runs and results (default: %(default)s)")
    add("--workers", type=int, default=1, help="number of worker processes on this host (default: %(default)s)")
    add(
        "--confirm",
        type=int,
        default=0,
        metavar="K",
        help="then train the best trials with K more seeds (default: %(default)s)",
    )
    add(
        "--confirm-top",
        type=int,
        default=3,
        metavar="N",
        help="number of best trials to confirm (default: %(default)s)",
    )
    add("--target", nargs="+", default=[], metavar="CONFIG", help="configuration of the target model")
    add("--stale-after", type=float, default=90.0, help="seconds until a silent worker on another host counts as dead")
    return made


def parse(input_args: Sequence[str], overwrite_values: dict[str, Any] | None = None) -> Setup:
    """Parse the command line and load the files that it names. Raises ConfigError."""
    options, rest = parser().parse_known_args(list(input_args))
    args = NeoXArgs.consume_neox_args(overwrite_values, rest).replace(world_size=1)  # a trial is one process
    space = load_space(options.space, args)
    trials = options.trials
    if space.sampler == "grid":
        trials = min(trials or grid_size(space), grid_size(space))
    if trials is None:
        raise ConfigError("--trials is missing: give the number of trials")
    for name in ("trials", "workers", "confirm_top"):
        value = trials if name == "trials" else getattr(options, name)
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: expected an integer >= 1, got {value}")
    if options.confirm < 0 or options.stale_after <= 0:
        raise ConfigError("--confirm must not be negative, and --stale-after must be above 0")
    return Setup(
        args=args,
        space=space,
        trials=trials,
        study=options.study or str(options.out / "study.db"),
        name=options.study_name,
        out=options.out,
        workers=options.workers,
        confirm_top=options.confirm_top,
        confirm_seeds=options.confirm,
        stale_after=options.stale_after,
        proxy=tuple(rest),
        target_files=tuple(options.target),
        argv=tuple(input_args),
    )
