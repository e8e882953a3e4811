"""Base-shape files in the `.bsh` format of microsoft/mup. `save-base-shapes` writes them, and a target run reads them.

There is one file per rank, `<base-shapes-file>.<rank>`, with global dimensions and layout-independent names. A run
under any layout can read them. Comment lines hold the base dimensions that the shapes do not determine.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.architecture import Widths
from megatron.errors import BaseShapeError
from megatron.parametrization.plan import Shape
from mup.infshape import InfShape
from mup.shape import load_base_shapes as read_base_shapes
from mup.shape import read_comments, zip_infshapes
from mup.shape import save_base_shapes as write_base_shapes

# configuration key of each base dimension, which is also its name in the comment lines of the files
BASE_KEYS: Mapping[str, str] = {
    "hidden_size": "mup-base-hidden-size",
    "num_attention_heads": "mup-base-num-attention-heads",
    "num_kv_heads": "mup-base-num-kv-heads",
    "ffn_hidden_size": "base ffn hidden size",
    "num_layers": "mup-base-num-layers",
}


@dataclass(frozen=True)
class BaseShapeFiles:
    """Merged contents of all files with one prefix. `dims` is empty for files that another program wrote."""

    files: tuple[Path, ...]
    shapes: Mapping[str, InfShape]
    dims: Mapping[str, int]

    @property
    def names(self) -> str:
        return ", ".join(str(file) for file in self.files)


def save_base_shapes(
    file: Path, base_shapes: Mapping[str, Shape], delta_shapes: Mapping[str, Shape], base: Widths, layout: str
) -> None:
    """Write the file of one rank. A dimension that differs between base and delta is infinite; others are null."""
    shapes = zip_infshapes(base_shapes, {name: delta_shapes[name] for name in base_shapes})
    comments = [f"{BASE_KEYS[key]}: {value}" for key, value in dataclasses.asdict(base).items()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_base_shapes(shapes, file, [*comments, f"layout: {layout}"])
    except OSError as error:
        raise BaseShapeError(f"base-shapes-file {file} cannot be written: {error.strerror}") from error


def load_base_shapes(prefix: Path) -> BaseShapeFiles:
    """Read and merge `<prefix>.<rank>` of every rank, or read `<prefix>` itself (a plain `.bsh` file).

    Raises BaseShapeError if there is no file, if a file cannot be read, or if the files disagree.
    """
    ranks = [path for path in prefix.parent.glob(f"{prefix.name}.*") if re.fullmatch(r"\.[0-9]{1,9}", path.suffix)]
    files = sorted(ranks, key=lambda path: int(path.suffix[1:])) or ([prefix] if prefix.is_file() else [])
    if not files:
        raise BaseShapeError(
            f"base-shapes-file: neither {prefix}.0 nor {prefix} exists; run the base model with "
            "save-base-shapes: true to write it, or set mup-base-hidden-size instead"
        )
    shapes: dict[str, InfShape] = {}
    dims: dict[str, int] = {}
    for file in files:
        try:
            entries, comments = read_base_shapes(file), read_comments(file)
        except (ValueError, OSError) as error:
            raise BaseShapeError(f"base-shapes-file {file} cannot be read: {error}") from error
        for raw, entry in entries.items():
            name = canonical_name(raw)
            if shapes.setdefault(name, entry) != entry:
                raise BaseShapeError(f"base-shapes-file: the shape of {name} differs between {file} and {files[0]}")
        for key, value in _dimensions(comments).items():
            if dims.setdefault(key, value) != value:
                raise BaseShapeError(
                    f"base-shapes-file: {BASE_KEYS[key]} is {value} in {file}, but {dims[key]} in {files[0]}"
                )
    return BaseShapeFiles(tuple(files), shapes, dims)


def _dimensions(comments: Sequence[str]) -> dict[str, int]:
    by_label = {label: key for key, label in BASE_KEYS.items()}
    found = {}
    for comment in comments:
        label, _, value = comment.partition(":")
        if label.strip() in by_label and re.fullmatch("[0-9]{1,18}", value.strip()):
            found[by_label[label.strip()]] = int(value)
    return found


def canonical_name(name: str) -> str:
    """Convert the name of a parameter in GPT-NeoX's plain or pipeline model, an index in a flat list, to our name."""
    name = re.sub(r"^(module\.)?(sequential\.)?", "", name)
    name = re.sub(r"^tied_modules\.embed\.", "0.", name)
    match = re.fullmatch(r"([0-9]{1,9})\.(.+)", name)
    if match is None:
        return name
    index, rest = int(match[1]), re.sub(r"\.(scale|g)$", ".weight", match[2])
    rest = rest.replace("mlp.linear1.", "mlp.dense_h_to_4h.").replace("mlp.linear2.", "mlp.dense_4h_to_h.")
    if rest.startswith(("word_embeddings.", "position_embeddings.")):
        return f"embedding.{rest}"
    if rest.startswith("norm."):
        return f"final_{rest}"
    if rest.startswith("final_linear."):
        return rest.replace("final_linear", "readout")
    return f"layers.{index - 2}.{rest}"  # NeoX: 0 embedding, 1 a reshaping step, 2 the first block


def base_widths(loaded: BaseShapeFiles, target: Widths, heads: int, kv_heads: int) -> Widths:
    """Base dimensions from the comment lines of the files, or from the shapes if there are no comment lines.

    heads, kv_heads: head counts of the base for files without comment lines; shapes do not determine them.
    Raises BaseShapeError if a parameter is missing.
    """
    if set(loaded.dims) == set(BASE_KEYS):
        return Widths(**loaded.dims)

    def size(name: str, dim: int, default: int) -> int:
        if name not in loaded.shapes:
            raise BaseShapeError(f"base-shapes-file {loaded.names}: parameter {name} is missing")
        return loaded.shapes[name][dim].base_dim or default

    blocks = [int(match[1]) for name in loaded.shapes if (match := re.match(r"layers\.(\d+)\.", name))]
    return Widths(
        hidden_size=size("embedding.word_embeddings.weight", 1, target.hidden_size),
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=size(*_down_projection(loaded), target.ffn_hidden_size),
        num_layers=1 + max(blocks),
    )


def _down_projection(loaded: BaseShapeFiles) -> tuple[str, int]:
    """Name of the last matrix of the first MLP, or of its experts, and the dimension of its fan-in."""
    experts = "layers.0.mlp.experts.dense_4h_to_h"
    return (experts, 2) if experts in loaded.shapes else ("layers.0.mlp.dense_4h_to_h.weight", 1)


def check_base_shapes(
    loaded: BaseShapeFiles, base_shapes: Mapping[str, Shape], shapes: Mapping[str, Shape], base_layers: int
) -> None:
    """Raise BaseShapeError, with the name of the parameter, unless the files match the base of this model.

    base_shapes: shapes of the model at base widths and at the depth of the target. Layers from `base_layers` on are
    not in the files.
    """
    expected = {name: shape for name, shape in base_shapes.items() if _layer_of(name) < base_layers}
    for name, shape in expected.items():
        if name not in loaded.shapes:
            raise BaseShapeError(
                f"base-shapes-file: {name} is missing in {loaded.names}; check that the file belongs to this model"
            )
        entry = loaded.shapes[name].base_shape()
        if len(entry) != len(shape):
            raise BaseShapeError(
                f"base-shapes-file: {name} has {len(entry)} dimensions in {loaded.names}, "
                f"but {len(shape)} in this model"
            )
        for dim, (stored, base, now) in enumerate(zip(entry, shape, shapes[name], strict=True)):
            if stored is None and now != base:
                raise BaseShapeError(
                    f"base-shapes-file: dimension {dim} of {name} is finite in {loaded.names}, but is {base} in the "
                    f"base and {now} in this model; save the base shapes again and let this dimension grow"
                )
            if stored is not None and stored != base:
                raise BaseShapeError(
                    f"base-shapes-file: dimension {dim} of {name} is {stored} in {loaded.names}, but the base "
                    f"dimensions of this configuration give {base}"
                )
    for name in loaded.shapes:
        if name not in base_shapes and _layer_of(name) < base_layers:
            raise BaseShapeError(f"base-shapes-file: {name} is in {loaded.names}, but not in this model")


def _layer_of(name: str) -> int:
    match = re.match(r"layers\.([0-9]{1,9})\.", name)
    return int(match[1]) if match else -1
