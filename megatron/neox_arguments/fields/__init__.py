"""Configuration keys, grouped as in GPT-NeoX. `NeoXArgs` inherits from every group."""

import dataclasses
from typing import Any

from megatron.neox_arguments.fields.deepspeed import NeoXArgsDeepspeedConfig, NeoXArgsDeepspeedRunner
from megatron.neox_arguments.fields.faults import NeoXArgsFaults
from megatron.neox_arguments.fields.logging import NeoXArgsLogging
from megatron.neox_arguments.fields.model import NeoXArgsModel
from megatron.neox_arguments.fields.moe import NeoXArgsMoE
from megatron.neox_arguments.fields.mup import NeoXArgsMup
from megatron.neox_arguments.fields.optimizer import NeoXArgsLRScheduler, NeoXArgsOptimizer
from megatron.neox_arguments.fields.other import NeoXArgsOther, NeoXArgsParallelism, NeoXArgsTokenizer
from megatron.neox_arguments.fields.posttraining import NeoXArgsPosttraining
from megatron.neox_arguments.fields.textgen import NeoXArgsTextgen
from megatron.neox_arguments.fields.training import NeoXArgsTraining
from megatron.neox_arguments.keys import Key, key_of
from megatron.neox_arguments.transfer import Recipe


@dataclasses.dataclass(kw_only=True)
class NeoXArgsKeys(
    NeoXArgsModel,
    NeoXArgsMup,
    NeoXArgsOptimizer,
    NeoXArgsLRScheduler,
    NeoXArgsTraining,
    NeoXArgsFaults,
    NeoXArgsTokenizer,
    NeoXArgsParallelism,
    NeoXArgsLogging,
    NeoXArgsTextgen,
    NeoXArgsDeepspeedConfig,
    NeoXArgsDeepspeedRunner,
    NeoXArgsOther,
    NeoXArgsPosttraining,
    NeoXArgsMoE,
):
    """Every key, as GPT-NeoX groups them."""


GROUPS = NeoXArgsKeys.__bases__

FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for group in GROUPS for field in dataclasses.fields(group)
}
KEYS: dict[str, Key] = {name: key_of(field) for name, field in FIELDS.items()}
ALIASES: dict[str, str] = {alias: name for name, key in KEYS.items() for alias in key.aliases}


def repeated_in(section: str) -> dict[str, str]:
    """Map each name inside a section (`fp16`, `optimizer.params`) to the top-level key that sets the same value."""
    paths = {name: key.same_as.rpartition(".") for name, key in KEYS.items() if key.same_as}
    return {inner: name for name, (parent, _, inner) in paths.items() if parent == section}


def section_fields(path: str, section: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the declarations of all keys inside the section at `path`."""
    repeated = {inner: FIELDS[name] for inner, name in repeated_in(path).items()}
    return {**repeated, **{field.name: field for field in dataclasses.fields(section)}}


def shared_by(recipe: Recipe) -> list[str]:
    """Return the keys that must have the same value in all runs of `recipe`."""
    return [name for name, key in KEYS.items() if recipe in key.recipe]


__all__ = [
    "ALIASES",
    "FIELDS",
    "GROUPS",
    "KEYS",
    "NeoXArgsDeepspeedConfig",
    "NeoXArgsDeepspeedRunner",
    "NeoXArgsKeys",
    "repeated_in",
    "section_fields",
    "shared_by",
]
