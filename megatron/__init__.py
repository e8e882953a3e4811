"""A trainer for large language models. The names of GPT-NeoX's users are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "NeoXArgs": "megatron.neox_arguments",
    "initialize_megatron": "megatron.gpt_neox",
    "print_rank_0": "megatron.gpt_neox",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
