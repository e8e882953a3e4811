"""Tokenize text, and write labels in which the tokens before an answer do not count in the loss.

    python tools/datasets/preprocess_data_with_mask.py --input qa.jsonl --output-prefix data/qa \\
        --tokenizer-type HFTokenizer --vocab-file tokenizer.json --append-eod --mask-before-token 2343,27

Writes `<output-prefix>_text_document` and, of the same length, `<output-prefix>_label_document`, as GPT-NeoX does. A
label is -100 up to the end of the first occurrence of the tokens of --mask-before-token, and else the token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron.data.encoding import EncodingStats
from megatron.data.labels import write_labels
from megatron.errors import ConfigError
from muneox.commands import preprocess_data


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line: that of preprocess-data, with --mask-before-token."""
    parser = preprocess_data.build_parser()
    parser.description = __doc__
    parser.epilog = f"Next: {preprocess_data.LABELS}"
    parser.add_argument(
        "--mask-before-token",
        help="token ids, separated by commas: tokens up to the end of their first occurrence do not count in the loss",
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> EncodingStats:
    """Tokenize as `input_args` (default: the process's arguments) specify. Raises UserError."""
    args = build_parser().parse_args(input_args)
    pattern = _token_ids(args.mask_before_token) if args.mask_before_token else []
    if pattern and args.jsonl_keys != ["text"]:
        raise ConfigError("--jsonl-keys: with --mask-before-token only text, whose labels are written")
    stats = preprocess_data.preprocess(args)
    if pattern:
        labels = Path(f"{args.output_prefix}_label_document")
        without = write_labels(Path(f"{args.output_prefix}_text_document"), labels, pattern)
        print(f"wrote {labels}.bin and .idx")
        if without:
            print(f"{without} of {stats.documents} documents lack these tokens: all of their text counts in the loss")
    return stats


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--mask-before-token: expected token ids, separated by commas, got {text!r}") from None
