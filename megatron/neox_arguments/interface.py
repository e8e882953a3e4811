"""What GPT-NeoX's users call on a NeoXArgs, besides reading its keys."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron.neox_arguments.deepspeed_json import deepspeed_config
from megatron.neox_arguments.fields import (
    FIELDS,
    GROUPS,
    NeoXArgsDeepspeedConfig,
    NeoXArgsDeepspeedRunner,
)
from megatron.neox_arguments.merging import unknown_key

if TYPE_CHECKING:
    from megatron.tokenizer import Tokenizer

_DEEPSPEED_GROUPS = (NeoXArgsDeepspeedConfig, NeoXArgsDeepspeedRunner)
_OF_THIS_PROCESS = ("rank", "local_rank", "tokenizer")  # facts that are no configuration: an update keeps them


class GptNeoxInterface:
    """Methods and properties with GPT-NeoX's names. `docs/gpt-neox.md` lists the differences."""

    tokenizer: Tokenizer | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Same as `update_value`. Raises AttributeError if there is no key of that name."""
        if name in FIELDS:
            self.update_value(name, value)
        elif name in _OF_THIS_PROCESS:
            vars(self)[name] = value
        else:
            raise AttributeError(unknown_key(name, FIELDS))

    def replace(self, **changes: Any) -> Any:
        """Return a copy with `changes` applied, resolved and validated again."""
        raise NotImplementedError

    def update_value(self, key: str, value: Any) -> None:
        """Set one key of this object, and everything derived from it.

        Raises ConfigError if the result is invalid; the object is then unchanged.
        """
        self.update_values({key: value})

    def update_values(self, changes: Mapping[str, Any]) -> None:
        """Set several keys of this object at once. Raises as `update_value`."""
        kept = {name: vars(self)[name] for name in _OF_THIS_PROCESS if vars(self).get(name) is not None}
        vars(self).update({**vars(self.replace(**changes)), **kept})

    @classmethod
    def validate_keys(cls) -> bool:
        """Whether every key is declared in one group only."""
        names = [name for group in GROUPS for name in getattr(group, "__dataclass_fields__", ())]
        return len(names) == len(set(names))

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The DeepSpeed configuration, without optimizer and scheduler: the trainer builds both."""
        return deepspeed_config(self)

    @property
    def deepspeed_runner(self) -> dict[str, Any]:
        """The keys of DeepSpeed's launcher."""
        return self._values_of(NeoXArgsDeepspeedRunner)

    @property
    def megatron_config(self) -> dict[str, Any]:
        """All keys except those of DeepSpeed's configuration and launcher."""
        return self._values_of(*(group for group in GROUPS if group not in _DEEPSPEED_GROUPS))

    @property
    def all_config(self) -> dict[str, Any]:
        """All keys."""
        return self._values_of(*GROUPS)

    def _values_of(self, *groups: type) -> dict[str, Any]:
        names = [name for group in groups for name in getattr(group, "__dataclass_fields__", ())]
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    @property
    def params_dtype(self) -> Any:
        """The torch.dtype of the weights in a step. Only this property loads torch."""
        name = {"fp16": "float16", "bfloat16": "bfloat16"}.get(vars(self)["precision"], "float32")
        return getattr(importlib.import_module("torch"), name)

    def configure_distributed_args(self) -> None:
        """Set `rank`, `local_rank` and `world_size` from the environment of the launcher."""
        self.update_value("world_size", int(os.environ.get("WORLD_SIZE", "1")))
        vars(self)["rank"] = int(os.environ.get("RANK", "0"))
        vars(self)["local_rank"] = int(os.environ.get("LOCAL_RANK", "0"))

    def build_tokenizer(self) -> None:
        """Set `tokenizer`, and `padded_vocab_size` where it is unset. Raises DataError, ConfigError."""
        from megatron.tokenizer import build_tokenizer, padded_vocab_size

        values = vars(self)
        tokenizer = build_tokenizer(values["tokenizer_type"], values["vocab_file"], values["merge_file"])
        values["tokenizer"] = tokenizer
        if values["padded_vocab_size"] is None:
            multiple = values["make_vocab_size_divisible_by"] * values["model_parallel_size"]
            values["padded_vocab_size"] = padded_vocab_size(tokenizer.vocab_size, multiple)

    def print(self) -> None:
        """Print every key and whether it has its default, on the first rank."""
        if vars(self)["rank"]:
            return
        rows = [(value == FIELDS[name].default, name, value) for name, value in self.all_config.items()]
        for is_default, name, value in sorted(rows, key=lambda row: row[:2]):
            print(f"  {name} {'.' * max(40 - len(name), 3)} {value} ({'default' if is_default else 'updated'})")
