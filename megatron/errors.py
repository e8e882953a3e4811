"""Errors that a user can mend: entry scripts print their message without a traceback."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UserError(Exception):
    """A mistake or a fault outside the program, told in one sentence that names the file, key or parameter.

    `exit_code` is what an entry script exits with: 2 for wrong usage (configuration, command line), 1 for the rest.
    """

    exit_code = 1


class ConfigError(UserError):
    """The configuration or the command line is wrong: a key, a value, a combination."""

    exit_code = 2


class DataError(UserError):
    """A data or tokenizer file is missing, corrupt, or does not fit the configuration."""


class BaseShapeError(UserError):
    """A base-shapes file is missing, corrupt, or belongs to another model."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another configuration; or it could not be written."""


class TrainingError(UserError):
    """Training cannot go on, such as on a loss that is not finite."""
