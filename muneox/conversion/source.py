"""A checkpoint to convert: its plan, and its whole weights, read one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from megatron.checkpointing import NeoxCheckpoint, WholeCheckpoint, check_unchanged, is_neox, read_header
from megatron.errors import CheckpointError
from megatron.mappings import difference_table, differences
from megatron.model.build import ModelPlan, forward_section
from megatron.neox_arguments.run_config import ModelConfig
from megatron.training.model_from_config import model_plan, neox_assembly

_EMBEDDING = "embedding.word_embeddings.weight"


class Weights(Protocol):
    """Whole weights of a checkpoint by name, on the CPU."""

    def weight(self, name: str) -> Tensor: ...

    def release(self) -> None:
        """Close the files that are mapped. What was read stays valid."""
        ...


@dataclass(frozen=True)
class Source:
    """A checkpoint and the plan of its model, whose vocabulary is that of the checkpoint."""

    path: Path
    plan: ModelPlan
    weights: Weights

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in self.plan.parameters.items()}


def open_source(path: Path, model: ModelConfig) -> Source:
    """Open the verified checkpoint directory `path` (see `find_intact`) of the configured model.

    The rows of the vocabulary are those that are stored. Raises CheckpointError with the missing, extra and misshaped
    tensors if the checkpoint is of another model, and with the differences if its parametrization is another one.
    """
    if is_neox(path):
        return _open_neox(path, dataclasses.replace(model, padded_vocab_size=None))
    header = read_header(path)
    weights: _Stored | WholeCheckpoint
    if header["client_state"].get("layout") is None:
        weights = _Stored(path, header)
        stored: Mapping[str, tuple[int, ...]] = weights.shapes
    else:
        weights = WholeCheckpoint(path, header)
        stored = weights.layout.shapes
    if _EMBEDDING not in stored:
        raise CheckpointError(f"{path} has no tensor {_EMBEDDING}")
    plan = model_plan(dataclasses.replace(model, padded_vocab_size=None), stored[_EMBEDDING][0])
    source = Source(path, plan, weights)
    wrong = differences(stored, source.shapes)
    if wrong:
        table = difference_table(wrong, ("name", "in the checkpoint", "in the configuration"))
        raise CheckpointError(f"{path} is a checkpoint of another model. These tensors differ:\n{table}")
    saved = header["client_state"].get("mup")
    if saved:
        now = forward_section(plan)
        check_unchanged({part: saved.get(part, {}) for part in now}, now)
    return source


class _Stored:
    """A checkpoint in one file that does not record its layout, such as a converted one."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._module = {name: x for name, x in (header.get("module") or {}).items() if isinstance(x, Tensor)}
        if len(list(path.glob("*model_states.pt"))) > 1:
            raise CheckpointError(f"{path} contains sharded weights but does not record their layout")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(x.shape) for name, x in self._module.items()}

    def weight(self, name: str) -> Tensor:
        return self._module[name]

    def release(self) -> None:
        """Do nothing: the file stays mapped."""


def _open_neox(path: Path, model: ModelConfig) -> Source:
    """GPT-NeoX gives the padding of the vocabulary a probability, so its rows are kept."""
    rows = NeoxCheckpoint(path, neox_assembly(model_plan(model, 1))).padded_rows()
    plan = model_plan(model, max(rows, 1))
    checkpoint = NeoxCheckpoint(path, neox_assembly(plan))
    checkpoint.check_fit()
    return Source(path, plan, checkpoint)
