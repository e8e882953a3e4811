"""Convert a checkpoint of this trainer to GPT-NeoX's format, for GPT-NeoX and its tools.

    python tools/ckpts/convert_to_neox.py --input_dir checkpoints --output_dir for-neox --tp 2

Checkpoints of every layout work. Multipliers of muP are folded into the weights, since GPT-NeoX applies its own rules:
do not set use_mup there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.checkpointing import find_intact
from megatron.errors import CheckpointError
from megatron.training.model_from_config import neox_assembly
from muneox.commands.convert_hf_to_neox import add_layout
from muneox.commands.convert_neox_to_hf import DTYPES, read_config
from muneox.conversion.folding import Folding, plain_factors
from muneox.conversion.neox_writer import NeoxFormat, write_neox
from muneox.conversion.resources import check_disk, check_memory, complete_folder
from muneox.conversion.source import open_source


def main(input_args: Sequence[str] | None = None) -> int:
    """Write the checkpoint. Returns exit code 0. Raises UserError."""
    args = _parse(input_args)
    path = find_intact(args.input_dir, args.iteration)
    if path is None:
        raise CheckpointError(f"{args.input_dir} holds no checkpoint")
    config = read_config(path, args.config_file)
    source = open_source(path, config.model)
    model = source.plan.config
    folding = Folding(model, source.plan.factors, plain_factors(model.widths))
    multiple = args.make_vocab_size_divisible_by
    form = NeoxFormat(neox_assembly(source.plan), tensor=args.tp, multiple=multiple, rmsnorm=model.norm == "rmsnorm")
    dtype = DTYPES[config.precision if args.precision == "auto" else args.precision]
    check_disk(args.output_dir, form.size(dtype))
    check_memory(form.memory(plain=args.pp == 0), f"--output_dir {args.output_dir}: writing")
    with complete_folder(args.output_dir) as folder:
        weight = source.weights.weight
        write_neox(
            lambda name: folding(name, weight(name)), source.weights.release, form, folder, dtype, plain=args.pp == 0
        )
    count = sum(torch.Size(shape).numel() for shape in source.shapes.values())
    print(f"wrote {args.output_dir}: {count:,} parameters in {dtype}, from {path}")
    if folding.changes_weights:
        print(f"folded into the weights: {folding.describe()}")
    return 0


def _parse(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input_dir", type=Path, required=True, help="save directory, or one of its global_step{N}")
    parser.add_argument("--iteration", type=int, help="step to convert (default: the latest)")
    parser.add_argument(
        "--config_file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configuration of its run (default: the stored one)",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; it must not hold files yet")
    parser.add_argument(
        "--make_vocab_size_divisible_by",
        type=int,
        default=128,
        help="the key's value in GPT-NeoX's configuration: the vocabulary is padded to a multiple of it x --tp"
        " (default: 128)",
    )
    add_layout(parser)
    return parser.parse_args(input_args)
