"""Prepare a corpus to train on: train a tokenizer, write .bin and .idx files, and describe them in corpus.json.

    python prepare_data.py                      the source text of sympy, which torch needs: no download
    python prepare_data.py --standard-library   the source text of the running Python's standard library
    python prepare_data.py --input FILE|FOLDER  your own text
    python prepare_data.py enwik8 -t bpe        a named download, with a tokenizer trained on it
    python prepare_data.py -d ./data            GPT-NeoX's command: enwik8 with GPT-2's tokenizer, both downloaded

The default text is the same on every machine: one version of sympy (26 MB, with its tests). Its size and SHA-256 are
checked and recorded in corpus.json. The text of the standard library depends on the running Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from megatron.command_help import command_parser
from megatron.data.corpora import (
    Source,
    downloaded_text,
    installed_text,
    local_text,
    read_documents,
    standard_library,
)
from megatron.data.data_utils import SPLITS, split_documents
from megatron.data.documents import DocumentReader
from megatron.data.downloads import DEFAULT, DOWNLOADS, Download, fetch, fetch_gpt2_tokenizer, known
from megatron.data.encoding import TokenizerSpec, encode_documents
from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import ConfigError, DataError
from megatron.files import open_regular, put_in_place, read_json, write_whole
from megatron.tokenizer import TOKENIZER_TYPES, build_tokenizer
from megatron.tokenizer.train_tokenizer import train_tokenizer

_FORMAT = 1  # of corpus.json and the files written: raise it to have old corpora prepared again
_KINDS = {"bpe": "HFTokenizer", "byte": "CharLevelTokenizer"}
_TOKENIZER_TRAINING_BYTES = 10_000_000  # more text does not change the merges of a few thousand tokens


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line. -d, -t, -v and -m are GPT-NeoX's."""
    parser = command_parser(
        __doc__,
        "`muneox train configs/mup/base.yml DATA/local.yml` trains on it.",
        usage="%(prog)s [DATASET | --input FILE ...] [options]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "dataset", nargs="?", help=f"{', '.join(DOWNLOADS)} (default: sympy's source text; with -d {DEFAULT})"
    )
    parser.add_argument("--input", nargs="+", help="your own text files and folders")
    parser.add_argument(
        "--standard-library", action="store_true", help="use the source text of this Python's standard library"
    )
    parser.add_argument("-d", "--data-dir", help="folder of corpora (default: data)")
    parser.add_argument(
        "--output-dir", help="folder of this corpus (default: <data-dir>/corpus, or /<name of a download>)"
    )
    parser.add_argument(
        "-t",
        "--tokenizer",
        help="bpe: trained on the corpus (default); byte; or a tokenizer-type, with -v and -m. The default of "
        "GPT-NeoX's data sets is GPT2BPETokenizer, with gpt2-vocab.json and gpt2-merges.txt of -d",
    )
    # 2048 suits hidden sizes of 64 to 256: 4096 gives 12 % more bytes per token and doubles the cost of the readout.
    parser.add_argument("--vocab-size", type=int, default=2048, help="of the bpe tokenizer (default: %(default)s)")
    parser.add_argument("-v", "--vocab-file", help="vocabulary or tokenizer file, for a tokenizer-type")
    parser.add_argument("-m", "--merge-file", help="merges, for GPT2BPETokenizer")
    parser.add_argument("--split", default="969, 30, 1", help="split of the statistics (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the order of documents")
    parser.add_argument("--workers", type=int, default=1, help="number of tokenizer processes")
    parser.add_argument("--force", action="store_true", help="prepare again, also if up to date or from another source")
    parser.add_argument("-f", "--force-redownload", action="store_true", help="download again, and prepare again")
    return parser


def main(input_args: Sequence[str] | None = None) -> dict[str, Any]:
    """Prepare a corpus unless it is up to date. Returns the content of corpus.json. Raises UserError."""
    args = _complete(build_parser().parse_args(input_args))
    data_set = known(args.dataset) if args.dataset else None
    if args.tokenizer == "GPT2BPETokenizer" and data_set and not (args.vocab_file or args.merge_file):
        args.vocab_file, args.merge_file = map(str, fetch_gpt2_tokenizer(args.data_dir, args.force_redownload))
    if data_set and not data_set.text:
        return prepare_documents(data_set, args)
    source = _source(args)
    folder = Path(args.output_dir or args.data_dir / source.name)
    request = _request(args, source)
    facts = None if args.force or args.force_redownload else up_to_date(folder, request)
    if facts is None:
        if not args.force:
            _keep_another(folder, request)
        facts = prepare(source, folder, request, args.workers)
    else:
        print(f"{folder} is up to date (--force prepares it again)")
    summarize(facts, folder)
    return facts


def _complete(args: argparse.Namespace) -> argparse.Namespace:
    """Set what depends on other options. Refuses bad options before any work, with ConfigError."""
    if args.dataset and args.input:
        raise ConfigError(f"give a data set ({args.dataset}) or --input, not both")
    if args.standard_library and (args.dataset or args.input):
        raise ConfigError("--standard-library cannot be combined with a data set or --input: remove one of them")
    if args.data_dir and not (args.dataset or args.input or args.standard_library):
        args.dataset = DEFAULT
    args.data_dir = Path(args.data_dir or "data")
    large = args.dataset and not known(args.dataset).text
    if args.tokenizer is None:
        of_neox = args.dataset and (large or args.dataset == DEFAULT)
        args.tokenizer = "GPT2BPETokenizer" if of_neox else "bpe"
    if args.tokenizer not in (*_KINDS, *TOKENIZER_TYPES):
        raise ConfigError(f"--tokenizer: {args.tokenizer!r} is not bpe, byte, or one of {', '.join(TOKENIZER_TYPES)}")
    if large and args.tokenizer == "bpe":
        raise ConfigError(
            f"--tokenizer: {args.dataset} is too large to train a tokenizer here; train one on a part of it with "
            "tools/datasets/train_tokenizer.py, and use -t HFTokenizer -v tokenizer.json"
        )
    if args.tokenizer == "bpe" and not 258 <= args.vocab_size <= 1_000_000:
        raise ConfigError(f"--vocab-size must be at least 258 (bytes and two special tokens), not {args.vocab_size}")
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {args.workers}")
    split_documents(args.split, 1000)
    if args.tokenizer not in (*_KINDS, "GPT2BPETokenizer") or args.vocab_file:
        build_tokenizer(_KINDS.get(args.tokenizer, args.tokenizer), args.vocab_file, args.merge_file)
    return args


def _keep_another(folder: Path, request: dict[str, Any]) -> None:
    """Raise ConfigError if `folder` holds a corpus from another source."""
    try:
        source = read_json(folder / "corpus.json")["request"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if source != request["source"]:
        raise ConfigError(
            f"{folder} holds another corpus ({source}): choose another folder with --output-dir, or replace it with "
            "--force"
        )


def _source(args: argparse.Namespace) -> Source:
    if args.input:
        return local_text(args.input)
    if args.dataset:
        return downloaded_text(args.dataset, args.data_dir, args.force_redownload)
    return standard_library() if args.standard_library else installed_text()


def _request(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Everything that the result depends on."""
    return {
        "format": _FORMAT,
        "source": source.description,
        "text": dict(source.facts),
        "fingerprint": source.fingerprint(),
        "prefix": "text_document" if source.name == "corpus" else f"{source.name}_text_document",
        "trained_vocab_size": args.vocab_size if args.tokenizer == "bpe" else None,
        "tokenizer_type": _KINDS.get(args.tokenizer, args.tokenizer),
        "vocab_file": args.vocab_file,
        "vocab_sha256": _sha256(Path(args.vocab_file)) if Path(args.vocab_file or "").is_file() else None,
        "merge_file": args.merge_file,
        "split": args.split,
        "seed": args.seed,
    }


def prepare_documents(data_set: Download, args: argparse.Namespace) -> dict[str, Any]:
    """Download and tokenize a large data set of documents, without holding it in memory."""
    files = fetch(data_set, args.data_dir, args.force_redownload)
    prefix = Path(args.output_dir or args.data_dir / data_set.folder) / f"{data_set.folder}_text_document"
    kind = _KINDS.get(args.tokenizer, args.tokenizer)
    spec = TokenizerSpec(kind, args.vocab_file, args.merge_file)
    stats = encode_documents(DocumentReader(files), {"text": prefix}, spec, append_eod=True, workers=args.workers)
    for loss in stats.losses():
        print(f"warning: {loss}", file=sys.stderr)
    print(f"{stats.documents:,} documents, {stats.tokens['text']:,} tokens")
    _print_keys(_keys(prefix, kind, args.vocab_file, args.merge_file))
    return {"documents": stats.documents, "bytes": stats.text_bytes, "tokens": stats.tokens["text"]}


def up_to_date(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Content of corpus.json if `folder` holds the requested corpus with all files intact, otherwise None."""
    try:
        facts = read_json(folder / "corpus.json")
        intact = all(_sha256(folder / name) == digest for name, digest in facts["sha256"].items())
        return facts if intact and facts["request"] == request else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def prepare(source: Source, folder: Path, request: dict[str, Any], workers: int) -> dict[str, Any]:
    """Make the corpus in a temporary folder, then move its files to `folder`, corpus.json last."""
    texts, whole = read_documents(source, request["seed"])
    prefix = request["prefix"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".preparing-") as name:
            draft = Path(name)
            vocab_file = request["vocab_file"]
            if request["trained_vocab_size"]:
                vocab_file = str(draft / "tokenizer.json")
                train = texts[: split_documents(request["split"], len(texts))[1]] or texts
                train_tokenizer(for_training(train), request["trained_vocab_size"], Path(vocab_file))
            spec = TokenizerSpec(request["tokenizer_type"], vocab_file, request["merge_file"])
            documents = ({"text": text} for text in texts)
            stats = encode_documents(documents, {"text": draft / prefix}, spec, append_eod=whole, workers=workers)
            for loss in stats.losses():
                print(f"warning: {loss}", file=sys.stderr)
            facts = {"request": request, "append_eod": whole, "vocab_size": spec.build().vocab_size}
            facts |= measure(IndexedDataset(draft / prefix), texts, request["split"])
            written = sorted(draft.iterdir())
            facts["sha256"] = {file.name: _sha256(file) for file in written}
            (draft / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
            (folder / "corpus.json").unlink(missing_ok=True)
            for file in [*written, draft / "corpus.json"]:
                put_in_place(file, folder / file.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot write: {error.strerror or error}") from error
    return facts


def for_training(texts: Sequence[str]) -> Sequence[str]:
    """The first ten million characters of the (shuffled) texts, in whole texts."""
    ends = np.cumsum([len(text) for text in texts])
    return texts[: int(np.searchsorted(ends, _TOKENIZER_TRAINING_BYTES)) + 1]


def measure(indexed: IndexedDataset, texts: Sequence[str], split: str) -> dict[str, Any]:
    """Count documents, bytes and tokens of every part, and compute the unigram entropy of valid.

    `bytes_per_token` converts a loss in nats per token to nats per byte. The entropy is the cross entropy of valid
    under the unigram distribution of train. To keep it finite, one is added to the count of each token id that occurs
    anywhere. It is None without valid text.
    """
    text_bytes = np.array([len(text.encode()) for text in texts], np.int64)
    bounds = split_documents(split, len(texts))
    ends = np.concatenate(([0], np.cumsum(indexed.sizes, dtype=np.int64)))
    parts = {
        name: _part(end - first, int(text_bytes[first:end].sum()), int(ends[end] - ends[first]))
        for name, first, end in zip(SPLITS, bounds[:3], bounds[1:], strict=True)
    }
    train, valid = (indexed.tokens[ends[first] : ends[end]] for first, end in (bounds[:2], bounds[1:3]))
    entropy: dict[str, float | None] = {"nats_per_token": None, "nats_per_byte": None}
    if train.size and valid.size:
        ids = int(indexed.tokens.max()) + 1
        counts = np.bincount(train, minlength=ids) + (np.bincount(indexed.tokens, minlength=ids) > 0)
        nats = float(-np.log(counts[valid] / counts.sum()).mean())
        entropy = {
            "nats_per_token": nats,
            "nats_per_byte": nats / parts["valid"]["bytes_per_token"],
        }
    return {**_part(len(texts), int(text_bytes.sum()), int(ends[-1])), **parts, "unigram_entropy": entropy}


def _part(documents: int, text_bytes: int, tokens: int) -> dict[str, Any]:
    per_token = text_bytes / tokens if tokens else None
    return {"documents": documents, "bytes": text_bytes, "tokens": tokens, "bytes_per_token": per_token}


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summarize(facts: dict[str, Any], folder: Path) -> None:
    """Print the statistics of the corpus, and the configuration keys to train on it."""
    request, entropy = facts["request"], facts["unigram_entropy"]
    console = Console()
    console.print(f"{request['source']}; vocabulary {facts['vocab_size']}", highlight=False)
    table = Table()
    for heading in ("", "documents", "bytes", "tokens", "bytes/token"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, part in [*((name, facts[name]) for name in SPLITS), ("all", facts)]:
        ratio = f"{part['bytes_per_token']:.3f}" if part["tokens"] else "-"
        table.add_row(name, f"{part['documents']:,}", f"{part['bytes']:,}", f"{part['tokens']:,}", ratio)
    console.print(table)
    if entropy["nats_per_token"] is not None:
        console.print(
            f"valid under the unigrams of train: {entropy['nats_per_token']:.4f} nats/token, "
            f"{entropy['nats_per_byte']:.4f} nats/byte",
            highlight=False,
        )
    if empty := [name for name in SPLITS if not facts[name]["tokens"]]:
        print(
            f"warning: the corpus is small: split '{request['split']}' leaves no text to {' and '.join(empty)}; use "
            "more text, or the key split, for example split: 80,10,10",
            file=sys.stderr,
        )
    vocab_file = str(folder / "tokenizer.json") if request["trained_vocab_size"] else request["vocab_file"]
    keys = _keys(folder / request["prefix"], request["tokenizer_type"], vocab_file, request["merge_file"])
    overlay = folder / "local.yml"
    lines = ["# The corpus in this folder: add this file after that of a model.", "overlay: true"]
    text = "\n".join([*lines, *(f"{key}: {json.dumps(value)}" for key, value in keys.items())]) + "\n"
    if not overlay.is_file() or overlay.read_text() != text:
        write_whole(overlay, text)
    _print_keys(keys)
    print(f"or add its file: python deepy.py train.py configs/mup/base.yml {overlay}")


def _keys(prefix: Path, kind: str, vocab_file: str | None, merge_file: str | None) -> dict[str, str]:
    """The keys of a configuration that reads the corpus."""
    keys = {"data-path": str(prefix), "tokenizer-type": kind}
    keys |= {"vocab-file": vocab_file} if vocab_file else {}
    keys |= {"merge-file": merge_file} if merge_file else {}
    return keys


def _print_keys(keys: Mapping[str, str]) -> None:
    print("train on it with " + ", ".join(f"{key}: {value}" for key, value in keys.items()))
