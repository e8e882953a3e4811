"""Tokenize conversations with the chat template of a Hugging Face tokenizer, and write labels for one role.

    python tools/datasets/preprocess_data_with_chat_template.py --input chats.jsonl --output-prefix data/chats \\
        --tokenizer-path folder-of-the-tokenizer

Each entry of the input has a list of turns with `role` and `content`. Writes `<output-prefix>_<key>_document` and, of
the same length, `<output-prefix>_<key>_label_document`, as GPT-NeoX does: a label is the token in turns of the
generation role, and -100 elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from megatron.command_help import command_parser
from megatron.data.documents import Reader, find_files
from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.data.labels import LABEL_DTYPE, Chat, label_chat
from megatron.errors import ConfigError, DataError
from megatron.optional import import_optional
from megatron.processes import map_in_order, process_pool
from muneox.commands.preprocess_data import LABELS

_BATCH = 200  # conversations
_NO_REWARDS = "reward models are not supported; only the prediction of the next token is"


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line: GPT-NeoX's flags."""
    parser = command_parser(__doc__, LABELS, allow_abbrev=False)
    parser.add_argument(
        "--input", required=True, help="files and folders, separated by commas: JSONL or JSON, also compressed"
    )
    parser.add_argument("--jsonl-keys", nargs="+", default=["conversation"], help="keys of the conversations")
    parser.add_argument("--no-mask", action="store_true", help="write no labels: every token counts in the loss")
    parser.add_argument("--only-last", action="store_true", help="only the last turn counts in the loss")
    parser.add_argument("--generation-role", default="assistant", help="role whose turns count in the loss")
    parser.add_argument("--tokenizer-path", required=True, help="folder or name of a tokenizer with a chat template")
    parser.add_argument("--output-prefix", required=True, help="path of the output files without _<key>_document.bin")
    parser.add_argument("--dataset-impl", choices=["mmap"], default="mmap", help="format of the files; only mmap")
    parser.add_argument("--workers", type=int, default=1, help="processes that render the template")
    for flag in ("--num-docs", "--log-interval"):
        parser.add_argument(flag, type=int, help="accepted and not used: there is no progress display")
    for flag in ("--for-rm", "--reward-key", "--binary-reward"):
        parser.add_argument(flag, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Tokenize as `input_args` (default: the process's arguments) specify. Returns the exit code. Raises UserError."""
    args = build_parser().parse_args(input_args)
    if args.for_rm or args.reward_key or args.binary_reward:
        raise ConfigError(f"--for-rm, --reward-key, --binary-reward: {_NO_REWARDS}")
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {args.workers}")
    encoder = Encoder(
        args.tokenizer_path, tuple(args.jsonl_keys), not args.no_mask, args.generation_role, args.only_last
    )
    encoder.build()
    reader = ChatReader(find_files([part for part in args.input.split(",") if part]), encoder.keys)
    count = 0
    with ExitStack() as stack:
        builders = {
            name: stack.enter_context(IndexedDatasetBuilder(f"{args.output_prefix}_{name}_document", LABEL_DTYPE))
            for key in args.jsonl_keys
            for name in ([key] if args.no_mask else [key, f"{key}_label"])
        }
        for batch, encoded in _encode(encoder, _batches(reader), args.workers):
            for name, builder in builders.items():
                sizes = [len(tokens[name]) for tokens in encoded]
                builder.add_documents(np.concatenate([tokens[name] for tokens in encoded]), sizes)
            count += len(batch)
        if not count:
            raise DataError("the input contains no conversations: nothing was written")
        for builder in builders.values():
            builder.finalize()
    print(f"{count} conversations")
    for builder in builders.values():
        print(f"wrote {builder.prefix}.bin and .idx")
    return 0


@dataclass(frozen=True)
class Conversation:
    """The conversations of one entry by key, and its place for messages."""

    where: str
    chats: Mapping[str, Chat]


class ChatReader(Reader[Conversation]):
    """Iterates over entries with a list of turns under each of `keys`."""

    def __init__(self, files: Sequence[Path], keys: Sequence[str]) -> None:
        super().__init__(files)
        self.keys = keys

    def _document(self, entry: Any, where: str) -> Conversation:
        return Conversation(where, {key: _chat(entry, key, where) for key in self.keys})

    def _text(self, path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[Conversation]:
        raise DataError(f"{path}: conversations are read from .jsonl and .json files, also compressed, not from others")


@dataclass(frozen=True)
class Encoder:
    """Turns conversations into tokens and labels. It is sent to worker processes, which build the tokenizer."""

    tokenizer_path: str
    keys: tuple[str, ...]
    masks: bool
    role: str
    only_last: bool

    def build(self) -> None:
        """Load the tokenizer in this process. Raises ConfigError."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _own["encoder"], _own["tokenizer"] = self, _tokenizer(self.tokenizer_path)

    def encode(self, tokenizer: Any, conversation: Conversation) -> dict[str, np.ndarray]:
        """Tokens under each key, and labels under KEY_label. Raises DataError."""

        def render(turns: Chat, prompt: bool) -> list[int]:
            return list(tokenizer.apply_chat_template(list(turns), add_generation_prompt=prompt, return_dict=False))

        encoded = {}
        for key, chat in conversation.chats.items():
            if not self.masks:
                encoded[key] = np.array(render(chat, False), LABEL_DTYPE)
                continue
            end = tokenizer.eos_token_id
            try:
                tokens, labels = label_chat(chat, render, role=self.role, end=end, only_last=self.only_last)
            except DataError as error:
                raise DataError(f"{conversation.where}: {error}") from error
            encoded[key], encoded[f"{key}_label"] = np.array(tokens, LABEL_DTYPE), np.array(labels, LABEL_DTYPE)
        return encoded


_own: dict[str, Any] = {}  # of this process: its encoder and tokenizer


def _encode_batch(batch: list[Conversation]) -> list[dict[str, np.ndarray]]:
    return [_own["encoder"].encode(_own["tokenizer"], conversation) for conversation in batch]


def _encode(
    encoder: Encoder, batches: Iterator[list[Conversation]], workers: int
) -> Iterator[tuple[list[Conversation], list[dict[str, np.ndarray]]]]:
    """Yield batches and their tokens in order. With one worker, this process does the work."""
    if workers == 1:
        yield from ((batch, _encode_batch(batch)) for batch in batches)
        return
    died = DataError("a process that renders the template died, possibly for lack of memory: use fewer --workers")
    with process_pool(workers, encoder.build, died=died) as pool:
        yield from map_in_order(pool, _encode_batch, batches, 2 * workers)


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    remaining = iter(conversations)
    while batch := list(itertools.islice(remaining, _BATCH)):
        yield batch


def _tokenizer(path: str) -> Any:
    transformers = import_optional("transformers", "hf", "preprocess_data_with_chat_template", DataError)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer-path: {path}: {str(error).splitlines()[0]}") from error
    if not tokenizer.chat_template:
        raise ConfigError(f"--tokenizer-path: the tokenizer in {path} has no chat template")
    return tokenizer


def _chat(entry: Any, key: str, where: str) -> Chat:
    chat = entry.get(key) if isinstance(entry, dict) else None
    known = isinstance(chat, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in chat
    )
    if not chat or not known:
        raise DataError(f"{where}: expected a list of turns with role and content under the key {key!r}")
    return chat  # type: ignore[no-any-return]
