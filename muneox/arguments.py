"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse

from megatron.command_help import command_parser
from megatron.errors import ConfigError
from muneox.runs.run import Run
from muneox.runs.sources import read_runs


def config_parser(description: str | None, following: str) -> argparse.ArgumentParser:
    """A parser for commands that take configuration files: CONFIG... [options] [--key value ...].

    following: the sentence at the end, which names the next command. `parse_known_args` returns the configuration as
    the remaining arguments: files, and keys that override theirs.
    """
    return command_parser(
        description,
        following,
        usage="%(prog)s CONFIG... [options] [--key value ...]",
        allow_abbrev=False,
        epilog="Options can override any configuration key: --train-iters 300, --optimizer.params.eps=1e-9.",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUNS, --group, --tag and --where."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="metrics.jsonl, wandb offline folders, `entity/project`, TensorBoard or CSV files; folders and globs",
    )
    parser.add_argument("--group", help="only runs of this group")
    parser.add_argument("--tag", action="append", default=[], help="only runs with this tag (repeatable)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this value (repeatable)"
    )


def chosen_runs(options: argparse.Namespace) -> list[Run]:
    """Read the runs that the arguments select. Raises ConfigError for a --where without '=', else as read_runs."""
    where = {}
    for text in options.where:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--where {text}: expected KEY=VALUE, for example hidden_size=64")
        where[name.strip()] = value.strip()
    return read_runs(options.runs, group=options.group, tags=options.tag, where=where)
