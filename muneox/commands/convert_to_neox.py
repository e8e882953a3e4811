"""Convert a checkpoint of this trainer to GPT-NeoX's format, for GPT-NeoX and its tools.

    python tools/ckpts/convert_to_neox.py --input_dir checkpoints --output_dir for-neox --tp 2

Checkpoints of every layout work. Multipliers of muP are folded into the weights, since GPT-NeoX applies its own rules:
do not set use_mup there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron.command_help import command_parser
from muneox.commands.convert_hf_to_neox import add_layout
from muneox.commands.convert_neox_to_hf import add_output, add_source, dtype_of, open_run, print_folding
from muneox.conversion.folding import Folding, plain_factors
from muneox.conversion.neox_writer import NeoxFormat, write_neox
from muneox.conversion.resources import complete_folder


def main(input_args: Sequence[str] | None = None) -> int:
    """Write the checkpoint. Returns exit code 0. Raises UserError."""
    args = _parse(input_args)
    source, config = open_run(args)
    plan, weights = source.plan, source.weights
    folding = Folding(plan.config, plan.factors, plain_factors(plan.config.widths))
    form = NeoxFormat(plan, tensor=args.tp, multiple=args.make_vocab_size_divisible_by)
    dtype, plain = dtype_of(args, config), args.pp == 0
    form.check_resources(args.output_dir, dtype, plain=plain)
    with complete_folder(args.output_dir) as folder:
        write_neox(lambda name: folding(name, weights.weight(name)), weights.release, form, folder, dtype, plain=plain)
    print(f"wrote {args.output_dir}: {plan.num_parameters:,} parameters in {dtype}, from {source.path}")
    print_folding(folding)
    return 0


def _parse(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        __doc__, "`load` in GPT-NeoX's configuration; docs/conversion.md has the limits.", allow_abbrev=False
    )
    add_source(parser)
    add_output(parser, of_auto="that of the training run")
    parser.add_argument(
        "--make_vocab_size_divisible_by",
        type=int,
        default=128,
        help="the key's value in GPT-NeoX's configuration: the vocabulary is padded to a multiple of it x --tp"
        " (default: 128)",
    )
    add_layout(parser)
    return parser.parse_args(input_args)
