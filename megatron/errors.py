"""Errors the user can fix. Entry scripts print their message without a traceback."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or the name of its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration, RuntimeError)
"""What values of an unexpected type, name or size in a file raise in the code that uses them."""


@contextlib.contextmanager
def refusing(message: str, error: type[UserError]) -> Iterator[None]:
    """Raise `error` with `message` and the reason where the block uses a file's content and it is malformed."""
    try:
        yield
    except UserError:
        raise
    except MALFORMED as reason:
        what = f"no {reason}" if isinstance(reason, KeyError) else first_line(reason)
        raise error(f"{message} ({what})") from reason


def one_per_line(problems: Sequence[str], limit: int = 40) -> str:
    """Join the first `limit` problems, one per line, and count the others."""
    more = [f"and {len(problems) - limit} more problems"] if len(problems) > limit else []
    return "\n".join([*problems[:limit], *more])


_LONG_WORD = re.compile(r"(\S{200})\S{250,}(\S{50})")
_LONGEST = 20_000  # characters of a message


class UserError(Exception):
    """A mistake of the user or a fault outside the program. The message names the file, key or parameter.

    `exit_code` is the exit code of the entry script: 2 for wrong usage (configuration, command line), else 1. Words of
    more than 500 characters, which come from a damaged file, are cut.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(_LONG_WORD.sub(r"\1...\2", message)[:_LONGEST])


class ConfigError(UserError):
    """The configuration or the command line has an invalid key, value or combination."""

    exit_code = 2


class DataError(UserError):
    """A data or tokenizer file is missing, corrupt or does not match the configuration."""


class BaseShapeError(UserError):
    """A base-shapes file is missing, corrupt or belongs to another model."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, belongs to another configuration or cannot be written."""


class TrainingError(UserError):
    """Training cannot continue, for example because the loss is not finite."""
