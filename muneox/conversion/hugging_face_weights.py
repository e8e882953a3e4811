"""Read the weights of a model of Hugging Face's transformers, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron.checkpointing.integrity import load_safely
from megatron.errors import CheckpointError
from megatron.files import read_json
from megatron.mappings import ABSENT, Difference, difference_table
from megatron.optional import import_optional
from muneox.conversion.tensors import Group, Shape

_BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|attention\.(masked_)?bias)$")  # computed from the configuration
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


class HuggingFaceWeights:
    """The tensors in a folder by name. Files are mapped, so only what is used is read.

    Raises CheckpointError, which names the file, if one is missing or damaged. Nothing in a file is run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Mapping[str, Any]] = {}
        self._place = self._find()

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors that are weights."""
        return (name for name in self._place if not _BUFFERS.fullmatch(name))

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor; None if there is none of this name."""
        if name not in self._place:
            return None
        held = self._file(self._place[name])[name]
        return tuple(held.get_shape()) if hasattr(held, "get_shape") else tuple(held.shape)

    def tensor(self, name: str) -> Tensor:
        held = self._file(self._place[name])[name]
        whole: Tensor = held[:] if hasattr(held, "get_shape") else held
        return whole

    def release(self) -> None:
        """Close the files. What was read stays valid."""
        self._open.clear()

    def _find(self) -> dict[str, str]:
        """Name of each tensor -> name of its file."""
        for index in _INDEXES:
            path = self.folder / index
            if path.is_file():
                return self._indexed(path)
        for single in _SINGLE:
            if (self.folder / single).is_file():
                return dict.fromkeys(self._file(single), single)
        raise CheckpointError(f"{self.folder} holds no weights: expected {' or '.join(_SINGLE)}, or their index")

    def _indexed(self, path: Path) -> dict[str, str]:
        try:
            found = read_json(path)["weight_map"]
            place = {str(name): str(file) for name, file in found.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: expected an object weight_map of tensors and files ({error})") from error
        for file in sorted(set(place.values())):
            if Path(file).name != file or not (self.folder / file).is_file():
                raise CheckpointError(f"{path} lists the file {file}, which is not in the folder")
        return place

    def _file(self, name: str) -> Mapping[str, Any]:
        if name not in self._open:
            path = self.folder / name
            self._open[name] = _safetensors(path) if name.endswith(".safetensors") else _torch_file(path)
        return self._open[name]


def _safetensors(path: Path) -> Mapping[str, Any]:
    library = import_optional("safetensors", "hf", f"reading {path.name}", CheckpointError)
    try:
        file = library.safe_open(str(path), framework="pt")
        return {name: file.get_slice(name) for name in file.keys()}  # not a mapping
    except Exception as error:  # a Rust library, whose exceptions have no common class
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _torch_file(path: Path) -> Mapping[str, Any]:
    content = load_safely(path, mmap=True)
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(f"{path} holds no named tensors")
    return content


class JoinedWeights:
    """Our parameters, each joined from tensors of transformers.

    groups: of all parameters. shapes: of our parameters by name. Raises CheckpointError with the missing, extra and
    misshaped tensors if the folder holds another model.
    """

    def __init__(self, source: HuggingFaceWeights, groups: list[Group], shapes: Mapping[str, Shape]) -> None:
        self._source, self._groups = source, {group.ours: group for group in groups}
        self.release: Callable[[], None] = source.release
        expected = {name: shape for group in groups for name, shape in group.shapes(shapes[group.ours]).items()}
        wrong = [
            Difference(name, ABSENT if found is None else list(found), list(shape))
            for name, shape in expected.items()
            if (found := source.shape(name)) != shape
        ]
        tied = {"lm_head.weight", "embed_out.weight"} if "readout.weight" not in shapes else set()
        extra = [name for name in source if name not in expected and name not in tied]
        wrong += [Difference(name, list(source.shape(name) or ()), ABSENT) for name in extra]
        if wrong:
            table = difference_table(wrong, ("name", "in the files", "by config.json"))
            raise CheckpointError(f"{source.folder}: its tensors are not those of its config.json:\n{table}")

    def weight(self, name: str) -> Tensor:
        """Our whole parameter `name`."""
        group = self._groups[name]
        return group.join([self._source.tensor(each) for each in group.theirs])
