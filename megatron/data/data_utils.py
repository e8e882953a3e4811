"""Build the train, valid and test datasets from the data keys of the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.blending import BlendedDataset, normalize_weights, weights_by_num_documents
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.sample_order import Packing
from megatron.errors import ConfigError, DataError

Dataset = GPTDataset | BlendedDataset
SPLITS = ("train", "valid", "test")


def split_documents(split: str, num_documents: int) -> tuple[int, int, int, int]:
    """Return the first document of train, valid and test, and the end of test.

    split: weights of the three parts, for example "969, 30, 1" or "969/30/1". Rounds as Megatron-LM does. Raises
    ConfigError unless `split` is one to three numbers that are not negative and not all zero.
    """
    try:
        shares = [float(part) for part in split.replace("/", ",").split(",")]
        if len(shares) > 3 or not all(math.isfinite(s) and s >= 0 for s in shares) or not sum(shares) > 0:
            raise ValueError
    except ValueError:
        raise ConfigError(f"split: expected up to three weights, for example '969, 30, 1', got {split!r}") from None
    shares += [0.0] * (3 - len(shares))
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / sum(shares) * num_documents))
    excess = bounds[-1] - num_documents
    first, second, third, end = [bounds[0], *(max(0, bound - excess) for bound in bounds[1:])]
    return first, second, third, end


def samples_per_epoch(path: str | Path, split: str | None, seq_length: int) -> int:
    """Training samples in one epoch of joined documents. split: of the documents; None if all are for training."""
    indexed = IndexedDataset(path)
    first, end = (0, len(indexed)) if split is None else split_documents(split, len(indexed))[:2]
    return max(0, int(indexed.sizes[first:end].sum(dtype=np.int64)) - 1) // seq_length


def check_vocab(indexed: IndexedDataset, vocab_size: int, full: bool = False, lowest: int = 0) -> None:
    """Raise DataError if a token id is not in [lowest, vocab_size), which means that another tokenizer made the data.

    Checks about a million tokens spread over the file, or all of them if `full`.
    """
    tokens, block = indexed.tokens, 1 << 16
    step = block if full or len(tokens) <= 16 * block else len(tokens) // 16
    for start in range(0, len(tokens), step):
        piece = tokens[start : start + block]
        for extreme in (int(piece.min()), int(piece.max())):
            if not lowest <= extreme < vocab_size:
                raise DataError(
                    f"{indexed.prefix}.bin contains token id {extreme}, but the vocabulary has {vocab_size} tokens: "
                    "it was made with another tokenizer than that of `vocab-file` and `tokenizer-type`"
                )


def build_train_valid_test_datasets(
    *,
    data_path: str | Path | None = None,
    train_data_paths: Sequence[str | Path] | None = None,
    valid_data_paths: Sequence[str | Path] | None = None,
    test_data_paths: Sequence[str | Path] | None = None,
    train_data_weights: Sequence[float] | None = None,
    valid_data_weights: Sequence[float] | None = None,
    test_data_weights: Sequence[float] | None = None,
    weight_by_num_documents: bool = False,
    weighted_sampler_alpha: float = 1.0,
    split: str = "969, 30, 1",
    seq_length: int,
    seed: int,
    num_samples: tuple[int, int, int],
    cache_dir: Path | None = None,
    vocab_size: int | None = None,
    train_label_data_paths: Sequence[str | Path] | None = None,
    valid_label_data_paths: Sequence[str | Path] | None = None,
    test_label_data_paths: Sequence[str | Path] | None = None,
    packing: Packing = "packed",
    allow_chopped: bool = True,
    on_progress: Callable[[str], None] = lambda text: None,
) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    """Build the train, valid and test datasets. A dataset is None if no samples of it are requested.

    The test dataset is also None if `split` leaves no text to it, which happens with few documents.

    Either `split` divides the documents of `data_path`, or each dataset has a list of paths, which are blended by
    their weights (default: equal weights, or weights by number of documents). With `vocab_size`, the data is checked
    by `check_vocab`. Label paths are those of the labels of the paths of the same number; see GPTDataset for `packing`
    and `allow_chopped`. `on_progress` is called often, with a line that describes the progress.

    Raises ConfigError if keys contradict each other. Raises DataError if a file is missing or corrupt, or if a
    requested dataset would be empty.
    """
    paths = dict(zip(SPLITS, (train_data_paths, valid_data_paths, test_data_paths), strict=True))
    labels = dict(zip(SPLITS, (train_label_data_paths, valid_label_data_paths, test_label_data_paths), strict=True))
    weights = dict(zip(SPLITS, (train_data_weights, valid_data_weights, test_data_weights), strict=True))
    if data_path and any(paths.values()):
        raise ConfigError("data-path and train-, valid- or test-data-paths exclude each other: set only one of them")
    if not data_path and not any(paths.values()):
        raise ConfigError("no data: set data-path (`python prepare_data.py` makes a corpus) or train-data-paths")
    options = {
        "seq_length": seq_length,
        "seed": seed,
        "cache_dir": cache_dir,
        "packing": packing,
        "allow_chopped": allow_chopped,
    }
    if data_path:
        return _split_one(data_path, split, num_samples, vocab_size, options)
    built: list[Dataset | None] = []
    for name, count in zip(SPLITS, num_samples, strict=True):
        if count <= 0:
            built.append(None)
            continue
        given = paths[name]
        if not given:
            raise DataError(f"{name}-data-paths is not set, but {count} {name} samples are needed: set it")
        corpora = []
        for number, path in enumerate(given, start=1):
            corpora.append(_open(path, vocab_size))
            on_progress(f"{name} data: {number:,} of {len(given):,} files verified")
        label_paths = list(labels[name] or [])
        if label_paths and len(label_paths) != len(corpora):
            raise ConfigError(
                f"{name}-label-data-paths has {len(label_paths)} entries for {len(corpora)} {name}-data-paths"
            )
        of_corpora = [_open_labels(path, text, vocab_size) for path, text in zip(label_paths, corpora, strict=False)]
        if weight_by_num_documents:
            weight = weights_by_num_documents([len(corpus) for corpus in corpora], weighted_sampler_alpha)
        else:
            weight = list(weights[name] or [1.0] * len(corpora))
        if len(weight) != len(corpora):
            raise ConfigError(f"{name}-data-weights has {len(weight)} entries for {len(corpora)} {name}-data-paths")
        built.append(_blend(corpora, of_corpora or [None] * len(corpora), weight, count, options, on_progress))
    return built[0], built[1], built[2]


def _open(path: str | Path, vocab_size: int | None) -> IndexedDataset:
    indexed = IndexedDataset(path)
    if vocab_size is not None:
        check_vocab(indexed, vocab_size)
    return indexed


def _open_labels(path: str | Path, text: IndexedDataset, vocab_size: int | None) -> IndexedDataset:
    """The labels of `text`. Raises DataError unless each token has one, which is below `vocab_size`."""
    labels = IndexedDataset(path)
    if labels.dtype.kind not in "iu":
        raise DataError(f"{labels.prefix}: holds {labels.dtype.name}, not labels")
    if not np.array_equal(labels.sizes, text.sizes):
        raise DataError(
            f"{labels.prefix}: its documents are not as long as those of {text.prefix}, so it is not the label file of "
            "this text: preprocess both in one call"
        )
    if vocab_size is not None:
        check_vocab(labels, vocab_size, lowest=np.iinfo(np.int64).min)
    return labels


def _split_one(
    path: str | Path, split: str, num_samples: Sequence[int], vocab_size: int | None, options: dict[str, Any]
) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    indexed = _open(path, vocab_size)
    bounds = split_documents(split, len(indexed))
    built: list[Dataset | None] = []
    for name, count, first, end in zip(SPLITS, num_samples, bounds[:3], bounds[1:], strict=True):
        if count <= 0:
            built.append(None)
            continue
        documents = np.arange(first, end, dtype=np.int32)
        if not indexed.sizes[documents].sum(dtype=np.int64) > 1:
            if name == "test":
                built.append(None)
                continue
            raise DataError(
                f"{indexed.prefix}: split '{split}' leaves {end - first} of its {len(indexed)} documents, "
                f"and no text, to {name}, but {count} samples are needed: change `split`, cut the text "
                f"into more documents, or request no {name} samples"
            )
        built.append(GPTDataset(indexed, documents, count, **options))
    return built[0], built[1], built[2]


def _blend(
    corpora: list[IndexedDataset],
    labels: Sequence[IndexedDataset | None],
    weights: list[float],
    count: int,
    options: dict[str, Any],
    on_progress: Callable[[str], None],
) -> Dataset:
    """Blend whole corpora. Each provides its share of `count` samples plus half a percent, as in Megatron-LM."""
    datasets = [
        GPTDataset(
            corpus,
            np.arange(len(corpus), dtype=np.int32),
            math.ceil(count * share * 1.005),
            labels=of_corpus,
            **options,
        )
        for corpus, of_corpus, share in zip(corpora, labels, normalize_weights(weights), strict=True)
    ]
    return BlendedDataset(
        datasets,
        weights,
        count,
        options["cache_dir"] or corpora[0].prefix.parent / "index_cache",
        lambda done: on_progress(f"order of the blend: {done:,} of {count:,} samples"),
    )
