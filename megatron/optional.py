"""Import optional dependencies when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from megatron.errors import ConfigError, UserError


def import_optional(
    module: str, extra: str | None, purpose: str, error: type[UserError] = ConfigError, otherwise: str = ""
) -> ModuleType:
    """Import and return `module`. Raises `error` with an installation hint if that fails.

    extra: the extra of this project that installs the package, or None to install the package by name. purpose: what
    needs the package, for example a key. otherwise: an alternative, in a few words.
    """
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        package = module.partition(".")[0]
        remedy = f"`pip install {f'-e .[{extra}]' if extra else package}`" + (f", or {otherwise}" if otherwise else "")
        raise error(f"{purpose} needs the package {package}, which cannot be imported ({reason}): {remedy}") from reason
