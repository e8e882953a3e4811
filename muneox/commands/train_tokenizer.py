"""Train a byte-level BPE tokenizer on files of text. See `megatron.tokenizer.train_tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.tokenizer import train_tokenizer


def main(input_args: Sequence[str] | None = None) -> None:
    """Train as `input_args` (default: the process's arguments) specify. Raises UserError."""
    train_tokenizer.main(train_tokenizer.parse_args(input_args))
