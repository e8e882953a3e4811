"""Tokenize conversations with the chat template of a Hugging Face tokenizer, and write labels for one role.

    python tools/datasets/preprocess_data_with_chat_template.py --input chats.jsonl --output-prefix data/chats \\
        --tokenizer-path folder-of-the-tokenizer

Each line of the input has a list of turns with `role` and `content`. Writes `<output-prefix>_<key>_document` and, of
the same length, `<output-prefix>_<key>_label_document`, as GPT-NeoX does: a label is the token in turns of the
generation role, and -100 elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.documents import find_files
from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.data.labels import LABEL_DTYPE, Chat, label_chat
from megatron.errors import ConfigError, DataError
from megatron.files import parse_json
from megatron.optional import import_optional

_NO_REWARDS = "reward models are not supported; only the prediction of the next token is"


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line: GPT-NeoX's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--input", required=True, help="JSONL files and folders, separated by commas")
    parser.add_argument("--jsonl-keys", nargs="+", default=["conversation"], help="keys of the conversations")
    parser.add_argument("--no-mask", action="store_true", help="write no labels: every token counts in the loss")
    parser.add_argument("--only-last", action="store_true", help="only the last turn counts in the loss")
    parser.add_argument("--generation-role", default="assistant", help="role whose turns count in the loss")
    parser.add_argument("--tokenizer-path", required=True, help="folder or name of a tokenizer with a chat template")
    parser.add_argument("--output-prefix", required=True, help="path of the output files without _<key>_document.bin")
    parser.add_argument("--dataset-impl", choices=["mmap"], default="mmap", help="format of the files; only mmap")
    for flag in ("--num-docs", "--workers", "--log-interval"):
        parser.add_argument(flag, type=int, help="accepted and not used: one process renders the template")
    for flag in ("--for-rm", "--reward-key", "--binary-reward"):
        parser.add_argument(flag, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Tokenize as `input_args` (default: the process's arguments) specify. Returns the exit code. Raises UserError."""
    args = build_parser().parse_args(input_args)
    if args.for_rm or args.reward_key or args.binary_reward:
        raise ConfigError(f"--for-rm, --reward-key, --binary-reward: {_NO_REWARDS}")
    tokenizer = _tokenizer(args.tokenizer_path)
    count = 0
    with ExitStack() as stack:
        builders = {
            name: stack.enter_context(IndexedDatasetBuilder(f"{args.output_prefix}_{name}_document", LABEL_DTYPE))
            for key in args.jsonl_keys
            for name in ([key] if args.no_mask else [key, f"{key}_label"])
        }
        for where, entry in _entries(find_files([part for part in args.input.split(",") if part])):
            for key in args.jsonl_keys:
                for name, tokens in zip((key, f"{key}_label"), _encoded(tokenizer, entry, key, where, args)):
                    if name in builders:
                        builders[name].add_documents(np.array(tokens, LABEL_DTYPE), [len(tokens)])
            count += 1
        if not count:
            raise DataError("the input contains no conversations: nothing was written")
        for builder in builders.values():
            builder.finalize()
    print(f"{count} conversations")
    for builder in builders.values():
        print(f"wrote {builder.prefix}.bin and .idx")
    return 0


def _tokenizer(path: str) -> Any:
    transformers = import_optional("transformers", "hf", "preprocess_data_with_chat_template", DataError)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer-path: {path}: {str(error).splitlines()[0]}") from error
    if not tokenizer.chat_template:
        raise ConfigError(f"--tokenizer-path: the tokenizer in {path} has no chat template")
    return tokenizer


def _entries(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Place and content of every line."""
    for path in files:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield f"{path}:{number}", parse_json(line)
                    except ValueError as error:
                        raise DataError(f"{path}:{number}: not JSON: {error}") from error


def _encoded(tokenizer: Any, entry: Any, key: str, where: str, args: argparse.Namespace) -> tuple[list[int], list[int]]:
    chat = _chat(entry, key, where)

    def render(turns: Chat, prompt: bool) -> list[int]:
        tokens = tokenizer.apply_chat_template(list(turns), add_generation_prompt=prompt, return_dict=False)
        return list(tokens)

    try:
        if args.no_mask:
            tokens = render(chat, False)
            return tokens, tokens
        end = tokenizer.eos_token_id
        return label_chat(chat, render, role=args.generation_role, end=end, only_last=args.only_last)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _chat(entry: Any, key: str, where: str) -> Chat:
    chat = entry.get(key) if isinstance(entry, dict) else None
    known = isinstance(chat, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in chat
    )
    if not chat or not known:
        raise DataError(f"{where}: expected a list of turns with role and content under the key {key!r}")
    return chat  # type: ignore[no-any-return]
