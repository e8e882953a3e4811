"""Convert a checkpoint to a model of Hugging Face's transformers.

    python tools/ckpts/convert_neox_to_hf.py --input_dir checkpoints --output_dir model-hf
    python tools/ckpts/convert_neox_to_hf.py --input_dir neox/global_step143000 --config_file 1B.yml --output_dir hf

Checkpoints of this trainer and of GPT-NeoX work, under every layout. Multipliers of muP are folded into the weights, or
written as the fields of Granite (--architecture granite).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.checkpointing import find_intact
from megatron.checkpointing.layout import CONFIGS
from megatron.command_help import command_parser
from megatron.errors import CheckpointError, ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.job_configs import ConversionConfig
from megatron.neox_arguments.resolve import conversion_config
from megatron.precisions import DTYPES as PRECISIONS
from muneox.conversion.families import FAMILIES, choose_family
from muneox.conversion.folding import Folding
from muneox.conversion.resources import complete_folder
from muneox.conversion.safetensors_file import SHARD_SIZE
from muneox.conversion.source import Source, open_source
from muneox.conversion.to_hugging_face import check_resources, export_shapes, write_model
from muneox.conversion.tokenizer_files import end_token, open_tokenizer, write_tokenizer

DTYPES = {**PRECISIONS, "bf16": torch.bfloat16}  # by the value of --precision, or of the key
_GB = 10**9


def main(input_args: Sequence[str] | None = None) -> int:
    """Write the model. Returns exit code 0. Raises UserError."""
    args = _parse(input_args)
    source, config = open_run(args)
    family = choose_family(source.plan.config, args.architecture)
    dtype = dtype_of(args, config)
    tokenizer = None if args.no_save_tokenizer else open_tokenizer(config.tokenizer)
    shapes = export_shapes(source, family)
    check_resources(shapes, source, dtype, args.output_dir)
    with complete_folder(args.output_dir) as folder:
        end = None if tokenizer is None else end_token(tokenizer)
        size = int(args.max_shard_size * _GB)
        folding = write_model(source, family, folder, dtype, end_token=end, shard_size=size)
        written = tokenizer is not None and write_tokenizer(
            config.tokenizer,
            tokenizer,
            folder,
            of_folder=args.vocab_is_hf_tokenizer,
            pad_token=None if args.pad_token_id < 0 else args.pad_token_id,
        )
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    print(f"wrote {args.output_dir}: {family.architecture}, {count:,} parameters in {dtype}, from {source.path}")
    print_folding(folding)
    if tokenizer is not None and not written:
        print(f"no tokenizer files: transformers has no tokenizer of type {config.tokenizer.tokenizer_type}")
    return 0


def open_run(args: argparse.Namespace) -> tuple[Source, ConversionConfig]:
    """The checkpoint of `add_source`'s arguments, and the configuration of its run. Raises UserError."""
    path = find_intact(args.input_dir, args.iteration)
    if path is None:
        raise CheckpointError(f"{args.input_dir} holds no checkpoint")
    config = _read_config(path, args.config_file)
    return open_source(path, config.model), config


def dtype_of(args: argparse.Namespace, config: ConversionConfig) -> torch.dtype:
    """The type of the weights to write."""
    return DTYPES[config.precision if args.precision == "auto" else args.precision]


def print_folding(folding: Folding) -> None:
    """Print the multipliers that were folded into the weights, if any."""
    if folded := folding.describe():
        print(f"folded into the weights: {folded}")


def _read_config(path: Path, files: Sequence[str]) -> ConversionConfig:
    """The configuration in `files`, or the one that the checkpoint in `path` holds. Raises ConfigError."""
    stored = path / CONFIGS / "resolved.json"
    if not files and not stored.exists():
        raise ConfigError(f"--config_file: missing; {path} holds no configuration of its run")
    return conversion_config(NeoXArgs.from_ymls(files or [stored]))


def _parse(input_args: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        __doc__, "`AutoModelForCausalLM.from_pretrained(OUTPUT)` in transformers.", allow_abbrev=False
    )
    add_source(parser)
    add_output(parser, of_auto="that of the training run")
    parser.add_argument(
        "--architecture", choices=tuple(FAMILIES), help="class of transformers (default: the one that fits)"
    )
    parser.add_argument("--no_save_tokenizer", action="store_true", help="write no tokenizer files")
    parser.add_argument(
        "--vocab-is-hf-tokenizer", action="store_true", help="the folder of vocab-file is a tokenizer of transformers"
    )
    parser.add_argument("--pad-token-id", type=int, default=-1, help="id of the padding token (default: none)")
    parser.add_argument(
        "--max_shard_size", type=float, default=SHARD_SIZE / _GB, metavar="GB", help="size of a file (default: 5)"
    )
    return parser.parse_args(input_args)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `open_run`: --input_dir, --iteration and --config_file."""
    parser.add_argument("--input_dir", type=Path, required=True, help="save directory, or one of its global_step{N}")
    parser.add_argument("--iteration", type=int, help="step to convert (default: the latest)")
    parser.add_argument(
        "--config_file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configuration of its run (default: the stored one)",
    )


def add_output(parser: argparse.ArgumentParser, of_auto: str) -> None:
    """Add --output_dir and --precision. of_auto: what the precision `auto` stands for, for the help."""
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; it must not hold files yet")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp16", "bf16", "fp32"),
        default="auto",
        help=f"type of the weights (default: auto, {of_auto})",
    )
