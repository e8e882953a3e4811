"""Base shapes: comparing a model with its base model, by parameter name, and keeping the outcome on the model."""

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
# what (Distributed)DataParallel and torch.compile put before every name
_WRAPPERS = ("module.", "_orig_mod.")


class ForgottenDimensionWarning(UserWarning):
    """A dimension taken for finite differs between base model and model: perhaps a width that delta does not vary."""


def get_shapes(model: nn.Module) -> dict[str, Any]:
    """Shape of every parameter by name; a model's own `get_shapes()` method goes first."""
    own = getattr(model, "get_shapes", None)
    if own is not None:
        return dict(own())
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def get_infshapes(model: nn.Module) -> dict[str, InfShape]:
    """InfShape of every parameter by name. Raises ShapeError before set_base_shapes."""
    attach(model)
    return {name: infshape_of(parameter, name) for name, parameter in model.named_parameters()}


def save_base_shapes(model_or_shapes: nn.Module | Shapes, file: StrPath, comments: Sequence[str] = ()) -> None:
    """Write base shapes as a .bsh file, whole or not at all.

    model_or_shapes: a model with base shapes set, or name -> InfShape, or name -> list of base sizes (None: finite).
    comments: lines to put on top, as `read_comments` returns them.
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
    """Read a .bsh file: name -> InfShape without sizes. Raises ValueError naming file and line when it is corrupt."""
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
    raise ShapeError(f"shapes come from a model, a dict or the path of a .bsh file, not from {type(x).__name__}")


def _unwrappings(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """(prefix, shapes without it), for each run of wrapper prefixes that all names share, the empty one first."""
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
            f"base and model do not have the same parameters: only in the base {sorted(extra)}, "
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
    """InfShape by name of two models, dicts of shapes or base-shape files; sizes equal in both are finite."""
    return _zip_infshape_dict(_extract_shapes(base), _sizes(_extract_shapes(target)))


def _sizes(shapes: Shapes) -> dict[str, Any]:
    return {name: shape.shape() if isinstance(shape, InfShape) else shape for name, shape in shapes.items()}


def clear_dims(infshape_dict: Mapping[str, InfShape]) -> dict[str, InfShape]:
    """A copy in which no dimension has a size (`dim` None): the base sizes alone."""
    cleared = copy.deepcopy(dict(infshape_dict))
    for shape in cleared.values():
        for dim in shape:
            dim.dim = None
    return cleared


def make_base_shapes(
    base_shapes: ModelOrShapes, delta_shapes: ModelOrShapes, savefile: StrPath | None = None
) -> dict[str, InfShape]:
    """Base shapes in which a dimension is a width exactly when base and delta differ in it; saved when asked."""
    shapes = clear_dims(zip_infshapes(base_shapes, delta_shapes))
    if savefile is not None:
        save_base_shapes(shapes, savefile)
    return shapes


def apply_infshapes(model: nn.Module, infshapes: Mapping[str, InfShape]) -> None:
    """Put each InfShape on its parameter, and into the record that its module keeps by name."""
    by_parameter: dict[int, InfShape] = {}
    for name, parameter in model.named_parameters():
        if name not in infshapes:
            raise ShapeError(f"no infshape is given for the parameter {name!r}")
        by_parameter[id(parameter)] = copy.deepcopy(infshapes[name])
    declared_first = sorted(model.modules(), key=lambda module: not declares(module))
    for module in declared_first:  # so that the owner's word on a tied weight holds for all that share it
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
    """Give every parameter of `model` its `infshape`, and bring a fresh torch initialisation into muP.

    base: the base model, its shapes, a .bsh path, or None for the model itself (that is SP). delta: a model that
    differs from the base in every width; without it a dimension is a width when base and model differ in it.
    rescale_params: rescale biases and readouts, assumed as torch initialises them. What was rescaled before, or came
    from a state dict, is left as it is. savefile: also write the base shapes. do_assert: refuse a plain nn.Linear
    from a width to a finite dimension. Returns the model.
    Raises ShapeError for names or ranks that differ. Warns (ForgottenDimensionWarning) of a finite dimension that
    changed.
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
    told = [
        f"{name} (dimension {i}: {shape[i].finite_base} in the base, {shape[i].dim} here)"
        for name, shape in infshapes.items()
        for i in shape.forgotten()
    ]
    if told:
        warnings.warn(
            "taken for finite, because the delta model does not vary them, but different from the base model: "
            + ", ".join(told)
            + ". If it is a width, vary it in the delta model; a vocabulary or a sequence length may stay so",
            ForgottenDimensionWarning,
            stacklevel=3,
        )


def _rescale(model: nn.Module) -> None:
    """Rescale what no one rescaled yet. A state dict speaks for the whole model: its readouts carry the mark."""
    modules = [module for module in model.modules() if isinstance(module, (MuOutput, nn.Linear, _ConvNd))]
    owners = {id(p) for m in model.modules() if not isinstance(m, MuOutput) for p in m._parameters.values()}
    for readout in (module for module in modules if isinstance(module, MuOutput)):
        readout._tied = readout._tied or id(readout.weight) in owners
        if readout._loaded_rescaled is not None:
            if readout._loaded_without_mark:
                warnings.warn(
                    "the model was loaded from a state dict that does not say whether it is in muP: nothing is "
                    "rescaled (set_base_shapes before load_state_dict, or rescale_params=False, says so)",
                    stacklevel=4,
                )
            for module in modules:
                module._has_rescaled_params = readout._loaded_rescaled
            readout._loaded_rescaled = None
    for module in modules:
        if module.weight.is_meta or getattr(module, "_has_rescaled_params", False):
            continue  # there is nothing to rescale on the meta device yet
        if isinstance(module, MuOutput):
            module._rescale_parameters()
            continue
        own = declaration(module, "weight")
        if own is not None and own.role in FROM_WIDTH:
            shape = infshape_of(module.weight, "weight")
            with torch.no_grad():  # torch's own variance is 1 / fan_in: exactly HIDDEN's rule
                module.weight.mul_((shape.width_mult() / init_rule(shape, -2.0)) ** 0.5)
        rescale_linear_bias(module)
        module._has_rescaled_params = True  # type: ignore[assignment]


def assert_hidden_size_inf(model: nn.Module) -> None:
    """Raise ShapeError for an nn.Linear from a width to a finite dimension that is neither a readout nor declared."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or isinstance(module, MuOutput):
            continue
        shape = infshape_of(module.weight, f"{name}.weight")
        if shape.role is None and not shape[0].isinf() and shape[1].isinf():
            raise ShapeError(
                f"{name} maps a width to a finite dimension but is a plain nn.Linear: make it a MuReadout, vary its "
                f"fan-out in the delta model, or say mup.declare({name}, role='hidden') (keys of fixed KV heads; "
                "role='value' for their values)"
            )
