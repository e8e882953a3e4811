"""A check of the merges in a tokenizer.json whose parts of words have a prefix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from megatron.errors import DataError
from megatron.files import parse_json, read_bytes

_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')


def require_prefixed_merges(path: str | Path) -> None:
    """Raise DataError if the second token of a merge does not start with the model's `continuing_subword_prefix`.

    The tokenizers library cuts the prefix off without a check, and ends the process if the token is too short.
    Files without a prefix, which is nearly all, are not parsed. Other damage is left to the library, as is a file that
    is missing.
    """
    try:
        content = read_bytes(path)
        if not _PREFIX.search(content):
            return
        model = parse_json(content)["model"]
        prefix, merges = model["continuing_subword_prefix"], model["merges"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for merge in merges if isinstance(merges, list) and isinstance(prefix, str) else ():
        second = _second(merge)
        if second is not None and not second.startswith(prefix):
            raise DataError(
                f"vocab-file: {path} is damaged: the merge {merge!r} needs a second token that starts with "
                f"continuing_subword_prefix {prefix!r}"
            )


def _second(merge: Any) -> str | None:
    """The second token of a merge, "first second" or [first, second]."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    return pair[1] if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str) else None
