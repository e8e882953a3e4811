"""Merge all .bin/.idx data sets of a folder into one, in the order of their names.

    python tools/datasets/merge_datasets.py --input data/parts --output-prefix data/merged

The order of the documents is that of the files, and their types must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron.command_help import command_parser
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import DataError


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line. Its flags are GPT-NeoX's."""
    parser = command_parser(
        __doc__, "`data-path: OUTPUT_PREFIX` in a configuration, for `muneox train`.", allow_abbrev=False
    )
    parser.add_argument("--input", required=True, help="folder of the data sets")
    parser.add_argument("--output-prefix", required=True, help="path of the merged files without .bin and .idx")
    return parser


def prefixes_in(folder: Path) -> list[Path]:
    """Prefixes of the data sets in `folder`, sorted. Raises DataError if one of its two files is missing."""
    if not folder.is_dir():
        raise DataError(f"--input: {folder} is not a folder")
    files = {file for file in folder.iterdir() if file.suffix in (".bin", ".idx") and not file.name.startswith(".")}
    for file in sorted(files):
        other = file.with_suffix(".idx" if file.suffix == ".bin" else ".bin")
        if other not in files:
            raise DataError(f"{file} has no {other.name}: a data set needs both files")
    if not files:
        raise DataError(f"--input: {folder} holds no .bin and .idx files")
    return sorted({file.with_suffix("") for file in files})


def main(input_args: Sequence[str] | None = None) -> None:
    """Merge as `input_args` (default: the process's arguments) specify. Raises UserError."""
    args = build_parser().parse_args(input_args)
    prefixes = prefixes_in(Path(args.input))
    target = Path(args.output_prefix)
    if target.absolute() in {prefix.absolute() for prefix in prefixes}:
        raise DataError(f"--output-prefix: {target} is one of the data sets to merge; choose another name")
    with IndexedDatasetBuilder(target, IndexedDataset(prefixes[0]).dtype) as builder:
        for prefix in prefixes:
            builder.merge(prefix)
        builder.finalize()
    merged = IndexedDataset(target)
    print(f"wrote {target}.bin and .idx: {len(prefixes)} data sets, {merged.tokens.size:,} tokens")
