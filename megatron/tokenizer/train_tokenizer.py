"""Train a byte-level BPE tokenizer on files of text.

    python tools/datasets/train_tokenizer.py --json_input_dir texts --tokenizer_output_path tokenizer.json -v 32000

The flags are GPT-NeoX's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron.command_help import command_parser
from megatron.data.documents import DocumentReader, find_files
from megatron.errors import ConfigError, DataError
from megatron.files import replacing

SMALLEST = 258  # a token for each byte, and two special tokens
LARGEST = 1_000_000


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse GPT-NeoX's command line."""
    parser = command_parser(
        __doc__,
        "`muneox preprocess-data --tokenizer-type HFTokenizer --vocab-file FILE` tokenizes text with it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json_input_dir", required=True, help="folder or file of text (.jsonl, .json, .txt, also .zst or .gz)"
    )
    parser.add_argument(
        "--tokenizer_output_path", required=True, help="the tokenizer.json to write; an empty path writes nothing"
    )
    parser.add_argument("--tokenizer_type", choices=["BPE"], default="BPE", help="only BPE")
    parser.add_argument("-v", "--vocab_size", type=int, default=52000, help="size of the vocabulary (default: 52000)")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    """Train and save as `args` specify. Raises UserError."""
    documents = DocumentReader(find_files([args.json_input_dir]))
    texts = (document["text"] for document in documents)
    tokenizer = train_tokenizer(texts, args.vocab_size)
    if args.tokenizer_output_path:
        save_tokenizer(tokenizer, Path(args.tokenizer_output_path))
        size = tokenizer.get_vocab_size()
        print(f"wrote {args.tokenizer_output_path}: {size} tokens; use it with tokenizer-type: HFTokenizer")


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path | None = None) -> Any:
    """Train a byte-level BPE tokenizer, save it to `path` if given, and return it.

    The vocabulary contains every byte, so that no text is lost. Raises ConfigError for a vocabulary that is too small.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not SMALLEST <= vocab_size <= LARGEST:
        raise ConfigError(
            f"the vocabulary must have {SMALLEST} (bytes and two special tokens) to {LARGEST} tokens, not {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if path is not None:
        save_tokenizer(tokenizer, path)
    return tokenizer


def save_tokenizer(tokenizer: Any, path: Path) -> None:
    """Write a tokenizer.json. An error leaves an existing file unchanged. Raises DataError."""
    target = path.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from error
