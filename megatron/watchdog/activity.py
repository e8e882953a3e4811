"""What a process is doing now, as the training loop announces it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Activity:
    """The current activity of this process, and a counter of its progress.

    what: the activity in words, for messages: "step 12". long: whether it may take longer than the timeout without
    progress, such as a save. progress: rises with each activity and each `advance`.
    """

    def __init__(self) -> None:
        self.what, self.long, self.progress = "the start", True, 0

    def begin(self, what: str, long: bool = False) -> None:
        """Announce the next activity."""
        self.what, self.long = what, long
        self.progress += 1

    def advance(self) -> None:
        """Note progress within the activity."""
        self.progress += 1

    def advancing(self, items: Iterator[T]) -> Iterator[T]:
        """Iterate over `items`, and note progress at each of them."""
        for item in items:
            self.advance()
            yield item
