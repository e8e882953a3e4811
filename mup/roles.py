"""Roles: what each parameter of any torch model is to muP, declared by its layer or inferred from its shape."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mup.infshape import InfShape, ShapeError
from mup.rules import FROM_WIDTH, TABLE, Family, Role

__all__ = ["Declaration", "Part", "attach", "declarations", "declare", "declare_as", "describe", "role_of"]

_RECORD = "_mup_record"
_DECLARED = "_mup_declared"

InitKind = Literal["matrix", "output_matrix", "zeros", "ones"]


@dataclass(frozen=True)
class Part:
    """Rows of a fused matrix that have a role of their own: of every `period` rows, those from `start` to `stop` - 1.

    name: what they are, such as "query" or "value".
    """

    name: str
    role: Role
    start: int
    stop: int
    period: int

    def count(self, rows: int) -> int:
        """How many of a matrix's `rows` belong to the part."""
        return rows // self.period * (self.stop - self.start)

    def of(self, weight: Tensor) -> Tensor:
        """The part's rows of a weight [rows, ...], as a view [rows / period, stop - start, ...]."""
        return weight.view(-1, self.period, *weight.shape[1:])[:, self.start : self.stop]


@dataclass(frozen=True)
class Declaration:
    """What a layer says of one of its parameters.

    role: None means inferred from the shape. init: how a plan draws it; `output_matrix` is the end of a residual
    branch. fan_in_dim, fan_out_dim: which dimensions they are where the layout is not torch's [fan_out, fan_in].
    parts: rows of a fused matrix with a role of their own, for its initial weights.
    """

    role: Role | None
    init: InitKind = "matrix"
    fan_in_dim: int | None = None
    fan_out_dim: int | None = None
    parts: tuple[Part, ...] = ()


def declare(
    module: nn.Module,
    name: str = "weight",
    role: Role | str | None = Role.HIDDEN,
    *,
    fan_in_dim: int | None = None,
    fan_out_dim: int | None = None,
) -> None:
    """Say what the parameter `name` of `module` is, where its shape alone does not tell.

    Needed for experts of shape [E, in, out] (fan_in_dim=1, fan_out_dim=2), any layout other than torch.nn.Linear's
    [out, in], and the keys and values of a fixed number of KV heads (roles hidden and value).
    May come before or after set_base_shapes. Raises AttributeError when the module has no such parameter.
    """
    own_role = None if role is None else Role(role)
    declare_as(module, name, Declaration(own_role, fan_in_dim=fan_in_dim, fan_out_dim=fan_out_dim))


def declare_as(module: nn.Module, name: str, declaration: Declaration) -> None:
    """`declare` with a whole Declaration, for layers that also say how a plan draws the parameter."""
    if name not in module._parameters:
        raise AttributeError(f"{type(module).__name__} has no parameter {name!r} of its own to declare")
    module.__dict__.setdefault(_DECLARED, {})[name] = declaration
    record = _record(module)
    if record is not None and name in record.shapes:
        record.shapes[name].declare(declaration.role, declaration.fan_in_dim, declaration.fan_out_dim)


def declares(module: nn.Module) -> bool:
    """Whether the module itself declares one of its parameters."""
    return _DECLARED in module.__dict__


def declaration(module: nn.Module, name: str) -> Declaration | None:
    """The declaration of a module's parameter: the owner's, else by layer type, else None."""
    own: Declaration | None = module.__dict__.get(_DECLARED, {}).get(name)
    if own is not None:
        return own
    if name == "weight" and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Declaration(Role.INPUT)
    if name == "weight" and (isinstance(module, _ConvTransposeNd) or _is_conv1d_of_transformers(module)):
        return Declaration(None, fan_in_dim=0, fan_out_dim=1)
    return None


def declarations(model: nn.Module) -> dict[str, Declaration]:
    """The layers' own declarations by parameter name, for models in which nothing is inferred.

    Raises TypeError for a parameter that its layer does not declare.
    """
    found = {}
    for name, _ in model.named_parameters():
        path, _, own = name.rpartition(".")
        declared: Declaration | None = model.get_submodule(path).__dict__.get(_DECLARED, {}).get(own)
        if declared is None:
            raise TypeError(f"parameter {name} declares no role; its layer must call mup.declare on it")
        found[name] = declared
    return found


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """transformers.pytorch_utils.Conv1D, a linear layer whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class _Record:
    """The InfShapes of one module's own parameters, by name.

    Tensors lose their attributes under deepcopy, to_empty, load_state_dict(assign=True) and sharding; the module
    keeps this record, and `attach` puts the shapes back. A deepcopy puts them on the copied tensors at once.
    """

    def __init__(self, module: nn.Module | None, shapes: dict[str, InfShape]) -> None:
        self.module = None if module is None else weakref.ref(module)  # weak: no cycle that keeps a model alive
        self.shapes = shapes

    def __deepcopy__(self, memo: dict[int, Any]) -> _Record:
        module = None if self.module is None else self.module()
        shapes = copy.deepcopy(self.shapes, memo)
        for name, shape in shapes.items():
            parameter = None if module is None else module._parameters.get(name)
            if parameter is not None:
                copy.deepcopy(parameter, memo).infshape = shape  # type: ignore[attr-defined]
        return _Record(memo.get(id(module)), shapes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Record, (None if self.module is None else self.module(), self.shapes)


def _record(module: nn.Module) -> _Record | None:
    return module.__dict__.get(_RECORD)


def remember(module: nn.Module, name: str, shape: InfShape) -> None:
    """Put the shape on the module's parameter and into the module's record."""
    record = _record(module)
    if record is None:
        record = module.__dict__[_RECORD] = _Record(module, {})
    own = declaration(module, name)
    if own is not None:
        shape.declare(own.role, own.fan_in_dim, own.fan_out_dim)
    record.shapes[name] = shape
    module._parameters[name].infshape = shape  # type: ignore[union-attr]


def attach(model: nn.Module) -> nn.Module:
    """Put the remembered InfShapes back on the parameters, as after to_empty() or fully_shard(). Returns the model."""
    for module in model.modules():
        record = _record(module)
        for name, shape in {} if record is None else record.shapes.items():
            parameter = module._parameters.get(name)
            if parameter is not None:
                parameter.infshape = shape  # type: ignore[attr-defined]
    return model


def attach_after_load(module: nn.Module, incompatible_keys: object) -> None:
    """load_state_dict post hook: assign=True brings new tensors."""
    attach(module)


def infshape_of(parameter: Tensor, name: str = "") -> InfShape:
    """The InfShape on a tensor. Raises ShapeError, with the way out, where there is none."""
    shape = getattr(parameter, "infshape", None)
    if not isinstance(shape, InfShape):
        what = f"parameter {name!r}" if name else f"a parameter of shape {tuple(parameter.shape)}"
        raise ShapeError(
            f"{what} has no infshape: call mup.set_base_shapes(model, ...) first, or mup.attach(model) where its "
            "tensors were replaced since (to_empty, fully_shard, DataParallel)"
        )
    return shape


def role_of(shape: InfShape, module: nn.Module | None = None) -> Role:
    """The declared role, else the one that shape and layer imply. Raises ShapeError over 2 infinite dimensions."""
    if shape.role is not None:
        return shape.role
    infinite = shape.ninf()
    if infinite > 2:
        raise ShapeError(f"{shape!r} has more than 2 infinite dimensions: declare its role and fan dimensions")
    if len(shape) < 2:
        return Role.VECTOR
    if infinite == 2:
        return Role.HIDDEN
    if infinite == 1:
        return Role.OUTPUT if shape.fanin_fanout()[0].isinf() else Role.INPUT
    return Role.OUTPUT if hasattr(module, "output_mult") else Role.HIDDEN


def describe(shape: InfShape, module: nn.Module | None = None) -> tuple[Role, float, float, float]:
    """(role, r, s, m) of a parameter, m being the multiplier of its own width. A vector's r and s are its m too."""
    role = role_of(shape, module)
    if len(shape) < 2:
        own = shape.width_mult()
        return role, own, own, own
    fan_in, fan_out = shape.fanin_fanout()
    if role is Role.HIDDEN and shape.role is None and shape.main is not None and shape.main is not fan_in:
        # main set by hand, or an undeclared tensor of 3 or more dimensions: as the original, main is the fan-in
        fan_in, fan_out = (
            shape.main,
            next((dim for dim in shape if dim.isinf() and dim is not shape.main), fan_out),
        )
    r, s = fan_in.width_mult(), fan_out.width_mult()
    return role, r, s, (r if role in FROM_WIDTH else shape.width_mult())


def init_rule(shape: InfShape, exponent: float = 1.0) -> float:
    """The rule's factor on a parameter's init std, to the power `exponent`: the same for every optimizer."""
    role, *mults = describe(shape)
    return TABLE[Family.ADAM][role].init_std.raised(exponent)(*mults)
