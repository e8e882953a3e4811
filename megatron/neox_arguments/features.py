"""Features of GPT-NeoX that do not exist here. A configuration that requests one gets one sentence, whichever keys it
sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Feature:
    """An unsupported feature.

    sentence: that it is not supported, and the alternative. other_run: without its keys the run trains another model or
    objective, so that no further problem of the configuration is worth reporting.
    """

    sentence: str
    other_run: bool = False


_ATTENTION = "use a model whose layers are attention, for example configs/pythia/160M.yml"
UNSUPPORTED = {
    "mamba": Feature(f"Mamba layers are not supported; {_ATTENTION}", other_run=True),
    "rwkv": Feature(f"RWKV layers are not supported; {_ATTENTION}", other_run=True),
    "gmlp": Feature(f"gMLP layers are not supported; {_ATTENTION}", other_run=True),
    "sparse_attention": Feature(
        "sparse attention is not supported; global and flash layers attend to the whole sequence, which is another"
        " model",
        other_run=True,
    ),
    "preferences": Feature(
        "preference training and reinforcement learning (DPO, KTO, reward models, REINFORCE) are not supported; only"
        " the prediction of the next token is",
        other_run=True,
    ),
    "transformer_engine": Feature(
        "Transformer Engine is not supported; without its keys PyTorch's layers compute the same functions, but not in"
        " FP8"
    ),
    "bitsandbytes": Feature(
        "the 8-bit Adam of bitsandbytes is not supported; without use_bnb_optimizer AdamW keeps its states in fp32"
    ),
    "autotuning": Feature(
        "DeepSpeed's autotuning is not supported; set the batch sizes and zero_optimization.stage yourself"
        ", and remove the section"
    ),
}

_LAYERS = {
    "mamba": "mamba",
    "rwkv": "rwkv",
    "gmlp": "gmlp",
    "amlp": "gmlp",
    **dict.fromkeys(("local", "sparse_fixed", "sparse_variable", "bigbird", "bslongformer"), "sparse_attention"),
}


def unsupported_layers(attention_config: Any) -> Iterator[str]:
    """Yield the unsupported feature of each layer type in `attention_config`, which can be nested in any way."""
    if isinstance(attention_config, str):
        feature = _LAYERS.get(attention_config)
        if feature:
            yield feature
    elif isinstance(attention_config, list):
        for part in attention_config:
            yield from unsupported_layers(part)


def requested(given: Mapping[str, Any], of_keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the unsupported features that the user requests, each with the keys that request it, the main one first.

    of_keys: the feature of each key in `given` that has a refused value and belongs to a feature.
    """
    found: dict[str, list[str]] = {}
    for feature in unsupported_layers(given.get("attention_config")):
        found.setdefault(feature, ["attention_config"])
    main = sorted(of_keys, key=lambda key: key != "train_impl")
    for key in main:
        found.setdefault(of_keys[key], []).append(key)
    return found


def described(keys: list[str], sentence: str) -> str:
    """Return the message about `keys`, of which the first is the main one: its name and the sentence, then the others.

    Three others are named, and more are counted.
    """
    first, *others = keys
    if not others:
        return f"{first}: {sentence}"
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"{first}: {sentence} (the same applies to {named})"
