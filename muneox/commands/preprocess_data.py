"""Tokenize text into `<output-prefix>_<key>_document.bin` and `.idx`, which are GPT-NeoX's file names.

    python tools/datasets/preprocess_data.py --input a.jsonl.zst,folder --output-prefix data/mine \\
        --tokenizer-type HFTokenizer --vocab-file tokenizer.json --append-eod --workers 8
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from megatron.command_help import command_parser
from megatron.data.documents import DocumentReader, find_files
from megatron.data.encoding import EncodingStats, TokenizerSpec, encode_documents
from megatron.errors import ConfigError, DataError
from megatron.optional import import_optional
from megatron.tokenizer import TOKENIZER_TYPES

_SECONDS_BETWEEN_LINES = 10.0
LABELS = "`train-data-paths` and `train-label-data-paths` in a configuration, for `muneox train`."


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line: GPT-NeoX's flags, and flags for plain text and bad input."""
    parser = command_parser(
        __doc__, "`data-path: OUTPUT_PREFIX_text_document` in a configuration, for `muneox train`.", allow_abbrev=False
    )
    data = parser.add_argument_group("input data")
    data.add_argument(
        "--input",
        required=True,
        help="files and folders, separated by commas (.txt, .jsonl, .json, .zst, .gz)",
    )
    data.add_argument("--jsonl-keys", nargs="+", default=["text"], help="keys that hold text; one output each")
    data.add_argument("--num-docs", type=int, help="number of documents, if known, for the progress display")
    data.add_argument(
        "--split-text",
        choices=["file", "paragraph", "line"],
        default="file",
        help="unit of a document in plain text",
    )
    data.add_argument("--skip-bad-lines", action="store_true", help="skip bad JSON lines and count them")
    data.add_argument("--ftfy", action="store_true", help="fix mojibake with the ftfy library")
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument("--tokenizer-type", required=True, choices=list(TOKENIZER_TYPES), help="kind of tokenizer")
    tokenizer.add_argument("--vocab-file", "--vocab", help="vocabulary or tokenizer file")
    tokenizer.add_argument("--merge-file", help="merges, for GPT2BPETokenizer")
    tokenizer.add_argument(
        "--append-eod", action="store_true", help="end every document with the end-of-document token"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", required=True, help="path of the output files without _<key>_document.bin")
    output.add_argument("--dataset-impl", choices=["mmap"], default="mmap", help="format of the files; only mmap")
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument(
        "--workers", type=int, default=1, help="tokenizer processes; the output is the same for any number"
    )
    runtime.add_argument("--log-interval", type=int, default=100, help="documents between updates of the display")
    return parser


@contextmanager
def progress_display(
    position: Callable[[], tuple[int, int]], num_docs: int | None = None, log_interval: int = 100
) -> Iterator[Callable[[EncodingStats], None]]:
    """Show documents, MB/s of text and time left: a live bar on a terminal, otherwise one line every ten seconds.

    `position` returns the bytes of the input read so far and in total. Yields the function to call with new
    statistics.
    """
    console = Console(stderr=True)
    started = last_line = time.monotonic()
    shown_documents = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("tokenizing", total=position()[1])

        def update(stats: EncodingStats) -> None:
            nonlocal last_line, shown_documents
            if stats.documents - shown_documents < log_interval:
                return
            shown_documents = stats.documents
            now = time.monotonic()
            read, total = position()
            line = describe(stats, now - started, num_docs)
            progress.update(task, completed=read, description=line)
            if not console.is_terminal and now - last_line >= _SECONDS_BETWEEN_LINES:
                left = (now - started) * (total - read) / max(read, 1)
                console.print(f"{line}, {left:.0f} s left", highlight=False)
                last_line = now

        yield update


def describe(stats: EncodingStats, seconds: float, num_docs: int | None = None) -> str:
    """The statistics as one line of text."""
    of = f"/{num_docs}" if num_docs else ""
    rate = stats.text_bytes / 1e6 / max(seconds, 1e-9)
    return f"{stats.documents}{of} documents, {sum(stats.tokens.values()):,} tokens, {rate:.2f} MB/s"


def with_ftfy(documents: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Documents with mojibake fixed. Raises DataError if ftfy is not installed."""
    ftfy = import_optional("ftfy", None, "--ftfy", DataError)
    return ({key: ftfy.fix_text(text) for key, text in document.items()} for document in documents)


def main(input_args: Sequence[str] | None = None) -> EncodingStats:
    """Tokenize as `input_args` (default: the process's arguments) specify. Raises UserError."""
    return preprocess(build_parser().parse_args(input_args))


def preprocess(args: argparse.Namespace) -> EncodingStats:
    """Tokenize as the parsed arguments specify. Raises UserError."""
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {args.workers}")
    files = find_files([part for part in args.input.split(",") if part])
    hint = " (--skip-bad-lines skips such lines)"
    reader = DocumentReader(files, args.jsonl_keys, args.split_text, args.skip_bad_lines, hint)
    documents = with_ftfy(iter(reader)) if args.ftfy else iter(reader)
    prefixes = {key: Path(f"{args.output_prefix}_{key}_document") for key in args.jsonl_keys}
    spec = TokenizerSpec(args.tokenizer_type, args.vocab_file, args.merge_file)
    started = time.monotonic()
    with progress_display(
        lambda: (reader.bytes_read, reader.total_bytes), args.num_docs, args.log_interval
    ) as on_batch:
        stats = encode_documents(
            documents, prefixes, spec, append_eod=args.append_eod, workers=args.workers, on_batch=on_batch
        )
    print(describe(stats, time.monotonic() - started))
    for loss in stats.losses():
        print(f"warning: {loss}", file=sys.stderr)
    if reader.skipped:
        print(f"skipped {reader.skipped} bad lines")
    for prefix in prefixes.values():
        print(f"wrote {prefix}.bin and .idx")
    return stats
