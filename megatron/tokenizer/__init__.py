"""Tokenizers of GPT-NeoX's types. Does not import torch."""

from megatron.tokenizer.tokenizer import (
    TOKENIZER_TYPES,
    StreamDetokenizer,
    Tokenizer,
    build_tokenizer,
    padded_vocab_size,
)

__all__ = ["TOKENIZER_TYPES", "StreamDetokenizer", "Tokenizer", "build_tokenizer", "padded_vocab_size"]
