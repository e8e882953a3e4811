"""Characters for which a vocabulary has no token. Some tokenizers drop them, and others write their unknown token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from megatron.tokenizer.tokenizer import Tokenizer


class Coverage:
    """Counts characters that a tokenizer drops, except white space. Each character is checked once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._checked: set[str] = set()
        self._dropped: set[str] = set()

    def dropped(self, texts: Iterable[str]) -> Counter[str]:
        """How often each character without a token occurs in `texts`."""
        counts: Counter[str] = Counter()
        if not self._tokenizer.drops_characters:
            return counts
        for text in texts:
            here = set(text)
            for character in here - self._checked:
                if not character.isspace() and not self._tokenizer.tokenize(character):
                    self._dropped.add(character)
            self._checked |= here
            for character in here & self._dropped:
                counts[character] += text.count(character)
        return counts
