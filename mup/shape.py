"""Base shapes: compare a model with its base model by parameter name and store the result on the model."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mup.bsh import BaseShape, StrPath, read_bsh, read_comments, write_bsh
from mup.infshape import InfDim, InfShape, ShapeError, zip_infshape
from mup.layer import MuOutput, rescale_linear_bias
from mup.roles import attach, attach_after_load, declaration, declares, infshape_of, init_rule, remember
from mup.rules import FROM_WIDTH

__all__ = [
    "ForgottenDimensionWarning",
    "apply_infshapes",
    "assert_hidden_size_inf",
    "clear_dims",
    "get_infshapes",
    "get_shapes",
    "load_base_shapes",
    "make_base_shapes",
    "read_comments",
    "save_base_shapes",
    "set_base_shapes",
    "zip_infshapes",
]

Shapes = Mapping[str, Any]  # name -> torch.Size, list of sizes, or InfShape
ModelOrShapes = nn.Module | Shapes | StrPath
# prefixes that (Distributed)DataParallel and torch.compile add to every name
_WRAPPERS = ("module.", "_orig_mod.")


class ForgottenDimensionWarning(UserWarning):
    """A dimension that counts as finite differs between base model and model: delta possibly omits a width."""


def get_shapes(model: nn.Module) -> dict[str, Any]:
    """Shape of every parameter by name. If the model has a method `get_shapes()`, its result is used."""
    own = getattr(model, "get_shapes", None)
    if own is not None:
        return dict(own())
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def get_infshapes(model: nn.Module) -> dict[str, InfShape]:
    """InfShape of every parameter by name. Raises ShapeError before set_base_shapes."""
    attach(model)
    return {name: infshape_of(parameter, name) for name, parameter in model.named_parameters()}


def save_base_shapes(model_or_shapes: nn.Module | Shapes, file: StrPath, comments: Sequence[str] = ()) -> None:
    """Write base shapes as a .bsh file. The write is atomic.

    model_or_shapes: a model with base shapes set, or name -> InfShape, or name -> list of base sizes (None: finite).
    comments: lines at the top of the file, as returned by `read_comments`.
    """
    shapes = get_infshapes(model_or_shapes) if isinstance(model_or_shapes, nn.Module) else model_or_shapes
    write_bsh({name: _base_shape(shape) for name, shape in shapes.items()}, file, comments)


def _base_shape(shape: Iterable[Any]) -> BaseShape:
    if isinstance(shape, InfShape):
        finite = [None if dim.isinf() else (dim.finite_base or dim.dim) for dim in shape]
        return BaseShape(shape.base_shape(), finite)
    base = [None if size is None else int(size) for size in shape]
    return BaseShape(base, [None] * len(base))


def load_base_shapes(filename: StrPath) -> dict[str, InfShape]:
    """Read a .bsh file: name -> InfShape without sizes. Raises ValueError, with file and line, if it is corrupt."""
    return {
        name: InfShape(InfDim(base, None, finite) for base, finite in zip(*shape, strict=True))
        for name, shape in read_bsh(filename).items()
    }


def _extract_shapes(x: ModelOrShapes) -> dict[str, Any]:
    if isinstance(x, nn.Module):
        return get_shapes(x)
    if isinstance(x, Mapping):
        return {name: copy.deepcopy(shape) for name, shape in x.items()}
    if isinstance(x, (str, os.PathLike)):
        return dict(load_base_shapes(x))
    raise ShapeError(f"base shapes: expected a model, a dict or the path of a .bsh file, got {type(x).__name__}")


def _unwrappings(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over (prefix, shapes without it) for each sequence of wrapper prefixes that all names share.

    The first prefix is empty.
    """
    prefix, bare = "", dict(shapes)
    while True:
        yield prefix, bare
        part = next((part for part in _WRAPPERS if bare and all(name.startswith(part) for name in bare)), None)
        if part is None:
            return
        prefix, bare = prefix + part, {name.removeprefix(part): shape for name, shape in bare.items()}


def _zip_infshape_dict(base_shapes: Shapes, shapes: Shapes) -> dict[str, InfShape]:
    pairs = [(base, own) for own in _unwrappings(shapes) for base in _unwrappings(base_shapes)]
    (_, base), (prefix, bare) = next((p for p in pairs if p[0][1].keys() == p[1][1].keys()), pairs[0])
    extra, missing = base.keys() - bare.keys(), bare.keys() - base.keys()
    if extra or missing:
        raise ShapeError(
            f"the parameters of base and model differ: only in the base {sorted(extra)}, "
            f"only in the model {sorted(missing)}"
        )
    zipped = {}
    for name, shape in bare.items():
        try:
            zipped[prefix + name] = zip_infshape(base[name], shape)
        except ShapeError as error:
            raise ShapeError(f"{name}: {error}") from None
    return zipped


def zip_infshapes(base: ModelOrShapes, target: ModelOrShapes) -> dict[str, InfShape]:
    """InfShapes by name from two models, dicts of shapes or base-shape files. Sizes that are equal are finite."""
    return _zip_infshape_dict(_extract_shapes(base), _sizes(_extract_shapes(target)))


def _sizes(shapes: Shapes) -> dict[str, Any]:
    return {name: shape.shape() if isinstance(shape, InfShape) else shape for name, shape in shapes.items()}


def clear_dims(infshape_dict: Mapping[str, InfShape]) -> dict[str, InfShape]:
    """Return a copy with only the base sizes: `dim` of every dimension is None."""
    cleared = copy.deepcopy(dict(infshape_dict))
    for shape in cleared.values():
        for dim in shape:
            dim.dim = None
    return cleared


def make_base_shapes(
    base_shapes: ModelOrShapes, delta_shapes: ModelOrShapes, savefile: StrPath | None = None
) -> dict[str, InfShape]:
    """Return base shapes in which a dimension is a width if and only if base and delta differ in it.

    savefile: path of a .bsh file to write them to.
    """
    shapes = clear_dims(zip_infshapes(base_shapes, delta_shapes))
    if savefile is not None:
        save_base_shapes(shapes, savefile)
    return shapes


def apply_infshapes(model: nn.Module, infshapes: Mapping[str, InfShape]) -> None:
    """Set each InfShape on its parameter, and store it by name in the record of its module."""
    by_parameter: dict[int, InfShape] = {}
    for name, parameter in model.named_parameters():
        if name not in infshapes:
            raise ShapeError(f"infshapes has no entry for the parameter {name!r}")
        by_parameter[id(parameter)] = copy.deepcopy(infshapes[name])
    declared_first = sorted(model.modules(), key=lambda module: not declares(module))
    for module in declared_first:  # the declaration of a tied weight holds for all modules that share it
        for name, own in module._parameters.items():
            if own is not None:
                remember(module, name, by_parameter[id(own)])
        if isinstance(module, MuOutput):
            module._width_mult = infshape_of(module.weight, "weight").width_mult()
    if not any(hook is attach_after_load for hook in model._load_state_dict_post_hooks.values()):
        model.register_load_state_dict_post_hook(attach_after_load)


def set_base_shapes(
    model: nn.Module,
    base: ModelOrShapes | None,
    rescale_params: bool = True,
    delta: ModelOrShapes | None = None,
    savefile: StrPath | None = None,
    do_assert: bool = True,
) -> nn.Module:
    """Set the `infshape` of every parameter of `model`, and convert a fresh torch initialisation to muP.

    base: the base model, its shapes, a .bsh path, or None for the model itself (this is SP).
    rescale_params: rescale biases and readouts, which must have torch's initialisation. Parameters that were already
    rescaled, or loaded from a state dict, do not change.
    delta: a model that differs from the base in every width. Without it a dimension is a width if base and model
    differ in it.
    savefile: path of a .bsh file to write the base shapes to.
    do_assert: raise for a plain nn.Linear from a width to a finite dimension.
    Returns the model. Raises ShapeError if names or ranks differ. Emits ForgottenDimensionWarning if a finite
    dimension differs from the base.
    """
    base_shapes = _extract_shapes(model if base is None else base)
    if delta is not None:
        base_shapes = dict(_zip_infshape_dict(base_shapes, _sizes(_extract_shapes(delta))))
    infshapes = _zip_infshape_dict(base_shapes, get_shapes(model))
    _warn_of_forgotten(infshapes)
    if savefile is not None:
        save_base_shapes(infshapes, savefile)
    apply_infshapes(model, infshapes)
    if do_assert:
        assert_hidden_size_inf(model)
    if rescale_params:
        _rescale(model)
    return model


def _warn_of_forgotten(infshapes: Mapping[str, InfShape]) -> None:
    changed = [
        f"{name} (dimension {i}: {shape[i].finite_base} in the base, {shape[i].dim} here)"
        for name, shape in infshapes.items()
        for i in shape.forgotten()
    ]
    if changed:
        warnings.warn(
            "dimensions that count as finite, because the delta model does not vary them, differ from the base model: "
            + ", ".join(changed)
            + ". Vary a width in the delta model; a vocabulary or a sequence length can stay as it is",
            ForgottenDimensionWarning,
            stacklevel=3,
        )


def _rescale(model: nn.Module) -> None:
    """Rescale the parameters that are not rescaled yet. The mark of a loaded readout holds for the whole model."""
    modules = [module for module in model.modules() if isinstance(module, (MuOutput, nn.Linear, _ConvNd))]
    owners = {id(p) for m in model.modules() if not isinstance(m, MuOutput) for p in m._parameters.values()}
    for readout in (module for module in modules if isinstance(module, MuOutput)):
        readout._tied = readout._tied or id(readout.weight) in owners
        if readout._loaded_rescaled is not None:
            if readout._loaded_without_mark:
                warnings.warn(
                    "the model was loaded from a state dict that does not record whether it is in muP: nothing is "
                    "rescaled. To silence this warning, call set_base_shapes before load_state_dict, or pass "
                    "rescale_params=False",
                    stacklevel=4,
                )
            for module in modules:
                module._has_rescaled_params = readout._loaded_rescaled
            readout._loaded_rescaled = None
    for module in modules:
        if module.weight.is_meta or getattr(module, "_has_rescaled_params", False):
            continue  # a meta tensor has no values to rescale yet
        if isinstance(module, MuOutput):
            module._rescale_parameters()
            continue
        own = declaration(module, "weight")
        if own is not None and own.role in FROM_WIDTH:
            shape = infshape_of(module.weight, "weight")
            with torch.no_grad():  # torch's variance is 1 / fan_in, which is HIDDEN's rule
                module.weight.mul_((shape.width_mult() / init_rule(shape, -2.0)) ** 0.5)
        rescale_linear_bias(module)
        module._has_rescaled_params = True  # type: ignore[assignment]


def assert_hidden_size_inf(model: nn.Module) -> None:
    """Raise ShapeError if a layer maps a width to a finite dimension and is neither a readout nor declared.

    The layers are linear layers and convolutions, also those that share their weight with an embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)) or isinstance(module, MuOutput) or declares(module):
            continue
        shape = infshape_of(module.weight, f"{name}.weight")
        if not shape.reads_out():
            continue
        kind = type(module).__name__
        if id(module.weight) in embeddings:
            raise ShapeError(
                f"{name} shares the weight of an embedding but is a plain nn.{kind}, without muP's factor on the "
                "logits: make it a mup.MuSharedReadout(embedding.weight)"
            )
        if shape.role is None:
            readout = "MuReadout" if isinstance(module, nn.Linear) else f"MuOut{kind}"
            raise ShapeError(
                f"{name} maps a width to a finite dimension but is a plain nn.{kind}: make it a {readout}, vary its "
                f"fan-out in the delta model, or call mup.declare({name}, role='hidden') (for keys of a fixed number "
                "of KV heads; role='value' for their values)"
            )
