"""What a rank reports when another rank has ended: one line instead of the traceback of a collective."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megatron.errors import TrainingError

_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Connection refused")
"""In the messages of gloo and NCCL, whose errors are RuntimeErrors."""


@contextlib.contextmanager
def naming_lost_connections(rank: int) -> Iterator[None]:
    """Raise TrainingError where a collective of the block fails because another rank cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        reason = next(line for line in str(error).splitlines() if any(words in line for words in _LOST))
        raise TrainingError(
            f"rank {rank} has lost its connection to another rank, which has ended or cannot be reached: the message "
            f"of that rank, or of the launcher, names the cause ({reason.strip()[:200]})"
        ) from error
