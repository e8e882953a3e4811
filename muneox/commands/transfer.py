"""Check which hyperparameters transfer from a proxy to its target, or write the proxy.

    python tools/mup/transfer.py configs/mup/base.yml configs/mup/target.yml --shared configs/local_setup.yml
    python tools/mup/transfer.py proxy.yml configs/mup/target.yml --make --width 64

Compares every key, and prints one line and the differences that break the transfer or shift the optimum. --all adds
those that only grow, and the target's learning rate and initial standard deviation by parameter. The exit code is 1 if
a difference breaks the transfer. With --make, writes PROXY: the target's configuration at a smaller width.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron.command_help import command_parser
from megatron.errors import ConfigError, UserError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import cost_config, model_config
from muneox.analysis.transfer import Finding, Kind, compare


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, "`muneox search PROXY... --target TARGET...` tunes the proxy.")
    parser.add_argument("proxy", help="the proxy's file; with --make, the file to write")
    parser.add_argument("target", help="the target's file")
    parser.add_argument("--shared", nargs="+", default=[], metavar="CONFIG", help="configuration files added to both")
    parser.add_argument("--make", action="store_true", help="write PROXY from TARGET")
    parser.add_argument("--width", type=int, help="--make: hidden size of the proxy (default: the base, or an eighth)")
    parser.add_argument("--trials", type=int, default=24, help="--make: number of trials in the cost estimate")
    parser.add_argument("--vocab-size", type=int, help="default: the tokenizer's, or padded-vocab-size")
    parser.add_argument("--all", action="store_true", help="also list every parameter of the target, with its rates")
    parser.add_argument("--brief", action="store_true", help="list parameters with one row for all blocks")
    return parser


def _vocab_size(args: NeoXArgs, given: int | None) -> int:
    """Vocabulary size: the given one, the tokenizer's, or padded-vocab-size if the tokenizer cannot be built.

    The padded size makes the cost estimate approximate and does not affect the tables.
    """
    from megatron.tokenizer import build_tokenizer

    if given is not None:
        return given
    try:
        return build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file).vocab_size
    except UserError:
        if args.padded_vocab_size:
            return args.padded_vocab_size
        raise ConfigError(
            "the vocabulary size is unknown: add the tokenizer's file with --shared, or give --vocab-size"
        ) from None


def _show_findings(findings: Sequence[Finding], console: Console) -> None:
    table = Table("verdict", "key", "proxy", "target", "why", "source", title="proxy against target")
    colours = {"BREAKS": "red", "SHIFTS": "yellow", "GROWS": "green"}
    for finding in findings:
        colour = colours[finding.kind.name]
        values = (str(finding.proxy), str(finding.target))
        table.add_row(f"[{colour}]{finding.kind.value}", finding.key, *values, finding.why, finding.source)
    console.print(table)


def _show_parameters(args: NeoXArgs, vocab_size: int, console: Console, brief: bool) -> None:
    """Print initial std, learning rate and weight decay of every parameter, from the plan, without training."""
    from megatron.training.model_from_config import model_plan

    plan = model_plan(model_config(args), vocab_size)
    table = Table("parameter", "role", "shape", "base", "r", "init std", "lr", "weight decay", title="target")
    shown: set[str] = set()
    for name, parameter in plan.parameters.items():
        label = re.sub(r"\.\d+\.", ".*.", name) if brief else name
        if label in shown:
            continue
        shown.add(label)
        scaling = parameter.scaling
        table.add_row(
            label,
            parameter.role.value,
            "x".join(map(str, parameter.shape)),
            "x".join(map(str, parameter.base_shape)),
            f"{parameter.fan_in_mult:g}",
            f"{parameter.init_std:.4g}",
            f"{args.lr * scaling.lr:.4g}" if args.lr else f"lr x {scaling.lr:.4g}",
            f"{args.weight_decay * scaling.weight_decay:.4g}",
        )
    console.print(table)
    factors = plan.factors
    console.print(
        f"forward factors: embedding {factors.embedding:g}, attention {factors.attention:.6g}, "
        f"logits {factors.logits:.6g}, residual branch {factors.residual:.6g}",
        highlight=False,
    )


def _make(options: argparse.Namespace, target: NeoXArgs, console: Console) -> None:
    from muneox.analysis.make_proxy import dump, make_proxy
    from muneox.cost import cost_of
    from muneox.output import write_atomically

    made = make_proxy(target, [options.target], options.width)
    header = [f"Proxy of {options.target}, for a hyperparameter search; it is its own muP base."]
    text = dump(made.values, header)
    if Path(options.proxy).exists():
        raise ConfigError(f"{options.proxy} already exists; --make writes a new file")
    write_atomically(Path(options.proxy), text)
    console.print(f"wrote {options.proxy}", highlight=False)
    if made.target_keys:
        keys = ", ".join(f"{key.replace('_', '-')}: {value}" for key, value in made.target_keys.items())
        console.print(f"the target needs the proxy's values of: {keys}", soft_wrap=True, highlight=False)
    proxy = NeoXArgs.from_ymls([options.proxy, *options.shared], world_size=1)
    if proxy.train_iters is None or proxy.train_batch_size is None:
        console.print("no cost estimate: the target has no train-iters or no batch size")
        return
    vocab_size = _vocab_size(target, options.vocab_size)
    one, whole = (cost_of(cost_config(args), vocab_size) for args in (proxy, target))
    console.print(
        f"one trial: {one.params:,} parameters, {one.tokens:,} tokens, {one.flops:.3g} FLOPs, "
        f"{one.flops / whole.flops:.2%} of the target's {whole.flops:.3g}; "
        f"{options.trials} trials: {options.trials * one.flops:.3g}, {options.trials * one.flops / whole.flops:.1%}",
        soft_wrap=True,
        highlight=False,
    )


def main(input_args: Sequence[str] | None = None) -> int:
    """Compare, or make the proxy. Returns the exit code: 1 if a difference breaks the transfer."""
    options = _parser().parse_args(input_args)
    console = Console(width=None if sys.stdout.isatty() else 200)
    target = NeoXArgs.from_ymls([options.target, *options.shared], world_size=1)
    if options.make:
        _make(options, target, console)
        return 0
    proxy = NeoXArgs.from_ymls([options.proxy, *options.shared], world_size=1)
    for args, file in ((proxy, options.proxy), (target, options.target)):
        if args.hidden_size is None or args.num_attention_heads is None or args.num_layers is None:
            raise ConfigError(f"{file}: set hidden-size, num-attention-heads and num-layers")
    if (proxy.hidden_size or 0) > (target.hidden_size or 0):
        raise ConfigError(
            f"{options.proxy} has width {proxy.hidden_size} and {options.target} {target.hidden_size}: the proxy, "
            "which is the narrower model, comes first; swap the two files"
        )
    findings = compare(proxy, target)
    broken = [finding.key for finding in findings if finding.kind is Kind.BREAKS]
    console.print(_verdict(findings))
    shown = [finding for finding in findings if options.all or finding.kind is not Kind.GROWS]
    if shown:
        _show_findings(shown, console)
    if options.all or options.brief:
        _show_parameters(target, _vocab_size(target, options.vocab_size), console, options.brief)
    return int(bool(broken))


def _verdict(findings: Sequence[Finding]) -> str:
    """One line: whether the transfer holds, what to check, and what grows."""
    broken, shifted, grown = (
        [finding for finding in findings if finding.kind is kind] for kind in (Kind.BREAKS, Kind.SHIFTS, Kind.GROWS)
    )
    if broken:
        return f"transfer: BROKEN by {', '.join(finding.key for finding in broken)}"
    check = f"; check {', '.join(finding.key for finding in shifted)}" if shifted else ""
    sizes = "; ".join(f"{finding.key} {finding.proxy} -> {finding.target}" for finding in grown)
    return f"transfer: holds{check}" + (f" ({sizes})" if sizes else "")
