"""Labels of fine-tuning data, as in GPT-NeoX: the tokens, or -100 where a token does not count in the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.errors import DataError

IGNORED = -100
LABEL_DTYPE = np.int32

Chat = Sequence[Mapping[str, str]]  # turns with `role` and `content`


def end_of_first(tokens: np.ndarray, pattern: Sequence[int]) -> int:
    """Number of tokens up to the end of the first occurrence of `pattern`, or 0 if it does not occur."""
    if len(tokens) < len(pattern):
        return 0
    found = (sliding_window_view(tokens, len(pattern)) == np.asarray(pattern)).all(axis=1)
    return int(found.argmax()) + len(pattern) if found.any() else 0


def write_labels(text: Path, labels: Path, pattern: Sequence[int]) -> int:
    """Write the labels of the data set `text`: -100 up to the end of the first `pattern` of each document.

    Returns the number of documents without the pattern, of which every token counts.
    """
    without = 0
    dataset = IndexedDataset(text)
    with IndexedDatasetBuilder(labels, LABEL_DTYPE) as builder:
        for index in range(len(dataset)):
            tokens = dataset[index].astype(LABEL_DTYPE)
            end = end_of_first(tokens, pattern)
            without += end == 0
            tokens[:end] = IGNORED
            builder.add_documents(tokens, [len(tokens)])
        builder.finalize()
    return without


def label_chat(
    chat: Chat,
    render: Callable[[Chat, bool], list[int]],
    *,
    role: str,
    end: int | None,
    only_last: bool = False,
) -> tuple[list[int], list[int]]:
    """Tokens and labels of a conversation. The turns of `role` count in the loss, or only its last one.

    render: turns, and whether the header of the next turn of `role` follows -> tokens, by a chat template. The header
    does not count. end: token at the end of the conversation, or None.
    Raises DataError if the template renders earlier turns differently when later ones follow.
    """
    tokens: list[int] = []
    labels: list[int] = []
    for index, turn in enumerate(chat):
        last = index == len(chat) - 1
        rendered = render(chat[: index + 1], not last and chat[index + 1]["role"] == role)
        if rendered[: len(tokens)] != tokens:
            raise DataError(
                f"the chat template renders the turns before turn {index + 1} differently when it follows, so their"
                " tokens cannot be told apart; use --no-mask"
            )
        new = rendered[len(tokens) :]
        counts = turn["role"] == role and (last or not only_last)
        tokens += new
        labels += new if counts else [IGNORED] * len(new)
    if end is not None:
        labels.append(end if labels and labels[-1] != IGNORED else IGNORED)
        tokens.append(end)
    return tokens, labels
