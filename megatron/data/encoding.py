"""Tokenize documents in batches, in one or several processes, and write token files in the order of the input."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.indexed_dataset import IndexedDatasetBuilder, best_fitting_dtype
from megatron.errors import DataError
from megatron.processes import map_in_order, process_pool
from megatron.tokenizer import Tokenizer, build_tokenizer
from megatron.tokenizer.coverage import Coverage
from megatron.tokenizer.long_text import token_ids

_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 1000

Batch = list[dict[str, str]]


_LONG = 1 << 18  # characters of a text that is tokenized in pieces


@dataclass(frozen=True)
class Encoded:
    """Tokens of a batch. tokens: by key, those of all documents, and their number in each document.

    without_tokens: texts that gave no token. unknown: unknown tokens. dropped: how often each character without a token
    occurs.
    """

    tokens: dict[str, tuple[np.ndarray, np.ndarray]]
    without_tokens: int
    unknown: int
    dropped: Counter[str]


@dataclass(frozen=True)
class TokenizerSpec:
    """Description of a tokenizer, from which worker processes build it."""

    tokenizer_type: str
    vocab_file: str | None = None
    merge_file: str | None = None

    def build(self) -> Tokenizer:
        return build_tokenizer(self.tokenizer_type, self.vocab_file, self.merge_file)


@dataclass
class EncodingStats:
    """Progress of the encoding. text_bytes: UTF-8 bytes over all keys. tokens: with end-of-document tokens, by key.

    without_tokens, unknown, dropped: see `Encoded`.
    """

    documents: int = 0
    text_bytes: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    without_tokens: int = 0
    unknown: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def losses(self) -> list[str]:
        """One sentence for each kind of text that the tokens do not contain."""
        sentences = []
        if self.dropped:
            named = ", ".join(f"{character!r} ({count:,})" for character, count in self.dropped.most_common(5))
            sentences.append(
                f"{self.dropped.total():,} characters have no token and are missing from the data: {named}"
                + (f" and {len(self.dropped) - 5} others" if len(self.dropped) > 5 else "")
            )
        if self.unknown:
            sentences.append(f"{self.unknown:,} tokens are the unknown token, because the vocabulary lacks their text")
        if self.without_tokens:
            sentences.append(f"{self.without_tokens:,} texts gave no token")
        return sentences


def encode_documents(
    documents: Iterable[dict[str, str]],
    prefixes: dict[str, Path],
    spec: TokenizerSpec,
    *,
    append_eod: bool = False,
    workers: int = 1,
    on_batch: Callable[[EncodingStats], None] = lambda stats: None,
) -> EncodingStats:
    """Write the texts of every key of `prefixes` to the dataset at its prefix, with one sequence per document.

    The output does not depend on `workers`. With one worker, tokenization runs in this process, where the tokenizers
    library uses threads. `on_batch` is called after each batch. An interruption or error leaves no new files and keeps
    existing ones. Raises DataError if there are no documents or a worker dies.
    """
    tokenizer = spec.build()
    dtype = best_fitting_dtype(tokenizer.vocab_size)
    eod = tokenizer.eod if append_eod else None
    stats = EncodingStats(tokens=dict.fromkeys(prefixes, 0))
    with ExitStack() as stack:
        builders = {
            key: stack.enter_context(IndexedDatasetBuilder(prefix, dtype, tokenizer.vocab_size))
            for key, prefix in prefixes.items()
        }
        if workers > 1:
            encoded = _encode_in_workers(_batches(documents), spec, eod, workers)
        else:
            coverage = Coverage(tokenizer)
            encoded = ((batch, _encode(tokenizer, coverage, batch, eod)) for batch in _batches(documents))
        for batch, result in encoded:
            for key, (tokens, sizes) in result.tokens.items():
                builders[key].add_documents(tokens, sizes)
                stats.tokens[key] += tokens.size
            stats.documents += len(batch)
            stats.text_bytes += sum(len(text.encode()) for document in batch for text in document.values())
            stats.without_tokens += result.without_tokens
            stats.unknown += result.unknown
            stats.dropped.update(result.dropped)
            on_batch(stats)
        if not stats.documents:
            raise DataError("the input contains no documents: nothing was written")
        for key, count in stats.tokens.items():
            if count == (stats.documents if append_eod else 0):
                raise DataError(
                    f"the tokenizer found no token in the {key!r} of any of {stats.documents} documents: nothing was "
                    "written; check that tokenizer-type and vocab-file fit the text"
                )
        for builder in builders.values():
            builder.finalize()
    return stats


def _batches(documents: Iterable[dict[str, str]]) -> Iterator[Batch]:
    batch: Batch = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document.values()))
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, coverage: Coverage, batch: Batch, eod: int | None) -> Encoded:
    encoded = {}
    without_tokens = unknown = 0
    dropped: Counter[str] = Counter()
    for key in batch[0]:
        texts = [document[key] for document in batch]
        ids = _token_ids(tokenizer, texts)
        without_tokens += sum(
            not len(found) and bool(text) and not text.isspace() for found, text in zip(ids, texts, strict=True)
        )
        dropped.update(coverage.dropped(texts))
        end = np.array([] if eod is None else [eod], np.int32)
        tokens = np.concatenate([part for found in ids for part in (found, end)])
        unknown += 0 if tokenizer.unknown is None else int((tokens == tokenizer.unknown).sum())
        encoded[key] = (tokens, np.fromiter((len(found) + end.size for found in ids), np.int64, len(ids)))
    return Encoded(encoded, without_tokens, unknown, dropped)


def _token_ids(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Tokens of each text. Tokenizes short texts together, and a long one in pieces."""
    short = iter(tokenizer.tokenize_batch([text for text in texts if len(text) < _LONG]))
    return [np.array(next(short), np.int32) if len(text) < _LONG else token_ids(tokenizer, text) for text in texts]


_worker: dict[str, Any] = {}


def _start_worker(spec: TokenizerSpec, eod: int | None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already run in parallel
    tokenizer = spec.build()
    _worker.update(tokenizer=tokenizer, coverage=Coverage(tokenizer), eod=eod)


def _encode_in_worker(batch: Batch) -> Encoded:
    return _encode(_worker["tokenizer"], _worker["coverage"], batch, _worker["eod"])


def _encode_in_workers(
    batches: Iterator[Batch], spec: TokenizerSpec, eod: int | None, workers: int
) -> Iterator[tuple[Batch, Encoded]]:
    """Yield batches and their tokens in order."""
    died = DataError("a tokenizer process died, possibly for lack of memory: use fewer --workers")
    with process_pool(workers, _start_worker, spec, eod, died=died) as pool:
        yield from map_in_order(pool, _encode_in_worker, batches, 2 * workers)
