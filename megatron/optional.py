"""Importing what an extra installs, where it is needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from megatron.errors import ConfigError, UserError


def import_optional(
    module: str, extra: str | None, purpose: str, error: type[UserError] = ConfigError, otherwise: str = ""
) -> ModuleType:
    """The module. Where it cannot be imported, `error` with one sentence that names the way out.

    extra: the extra of this project that installs it, None for a package of its own name. purpose: what needs it, such
    as a key. otherwise: another way out, in a few words.
    """
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        package = module.partition(".")[0]
        remedy = f"`pip install {f'-e .[{extra}]' if extra else package}`" + (f", or {otherwise}" if otherwise else "")
        raise error(f"{purpose} needs the package {package}, which cannot be imported ({reason}): {remedy}") from reason
