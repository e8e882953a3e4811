"""Roles of the parameters of any torch model, declared by the layer or inferred from the shape."""

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
    """Rows of a fused matrix with a separate role: of every `period` rows, those from `start` to `stop` - 1.

    name: name of the part, for example "query" or "value".
    """

    name: str
    role: Role
    start: int
    stop: int
    period: int

    def count(self, rows: int) -> int:
        """Number of rows that belong to the part, in a matrix with `rows` rows."""
        return rows // self.period * (self.stop - self.start)

    def of(self, weight: Tensor) -> Tensor:
        """Rows of the part in a weight [rows, ...], as a view [rows / period, stop - start, ...]."""
        return weight.view(-1, self.period, *weight.shape[1:])[:, self.start : self.stop]


@dataclass(frozen=True)
class Declaration:
    """Declaration of a parameter by its layer.

    role: None means that the role is inferred from the shape.
    init: how a plan draws the parameter; `output_matrix` is the end of a residual branch.
    fan_in_dim, fan_out_dim: dimensions of fan-in and fan-out if the layout is not torch's [fan_out, fan_in].
    parts: rows of a fused matrix with a separate role, for their initial weights.
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
    """Declare the role and layout of the parameter `name` of `module`, if its shape does not determine them.

    This is needed for experts of shape [E, in, out] (fan_in_dim=1, fan_out_dim=2), for any layout other than
    torch.nn.Linear's [out, in], and for the keys and values of a fixed number of KV heads (roles hidden and value).
    It can be called before or after set_base_shapes. Raises AttributeError if the module has no such parameter.
    """
    own_role = None if role is None else Role(role)
    declare_as(module, name, Declaration(own_role, fan_in_dim=fan_in_dim, fan_out_dim=fan_out_dim))


def declare_as(module: nn.Module, name: str, declaration: Declaration) -> None:
    """Like `declare`, with a whole Declaration, for layers that also declare how a plan draws the parameter."""
    if name not in module._parameters:
        raise AttributeError(f"{type(module).__name__} has no direct parameter {name!r} to declare")
    module.__dict__.setdefault(_DECLARED, {})[name] = declaration
    record = _record(module)
    if record is not None and name in record.shapes:
        record.shapes[name].declare(declaration.role, declaration.fan_in_dim, declaration.fan_out_dim)


def declares(module: nn.Module) -> bool:
    """Whether the module itself declares one of its parameters."""
    return _DECLARED in module.__dict__


def declaration(module: nn.Module, name: str) -> Declaration | None:
    """Declaration of a module's parameter: that of the module, otherwise that of the layer type, otherwise None."""
    own: Declaration | None = module.__dict__.get(_DECLARED, {}).get(name)
    if own is not None:
        return own
    if name == "weight" and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Declaration(Role.INPUT)
    if name == "weight" and (isinstance(module, _ConvTransposeNd) or _is_conv1d_of_transformers(module)):
        return Declaration(None, fan_in_dim=0, fan_out_dim=1)
    return None


def declarations(model: nn.Module) -> dict[str, Declaration]:
    """Declarations by parameter name, for models in which every layer declares its parameters.

    Raises TypeError for a parameter that its layer does not declare.
    """
    found = {}
    for name, _ in model.named_parameters():
        path, _, own = name.rpartition(".")
        declared: Declaration | None = model.get_submodule(path).__dict__.get(_DECLARED, {}).get(own)
        if declared is None:
            raise TypeError(f"parameter {name} has no declared role: its layer must call mup.declare")
        found[name] = declared
    return found


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether the module is transformers.pytorch_utils.Conv1D, a linear layer with a weight [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class _Record:
    """InfShapes of the direct parameters of one module, by name.

    Tensors lose their attributes under deepcopy, to_empty, load_state_dict(assign=True) and sharding. The module
    keeps this record, and `attach` sets the attributes again. A deepcopy sets them on the copied tensors immediately.
    """

    def __init__(self, module: nn.Module | None, shapes: dict[str, InfShape]) -> None:
        self.module = None if module is None else weakref.ref(module)  # a cycle would keep the model alive
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
    """Set the shape on the parameter of the module and store it in the record of the module."""
    record = _record(module)
    if record is None:
        record = module.__dict__[_RECORD] = _Record(module, {})
    own = declaration(module, name)
    if own is not None:
        shape.declare(own.role, own.fan_in_dim, own.fan_out_dim)
    record.shapes[name] = shape
    module._parameters[name].infshape = shape  # type: ignore[union-attr]


def attach(model: nn.Module) -> nn.Module:
    """Set the recorded InfShapes on the parameters again, for example after to_empty(). Returns the model."""
    for module in model.modules():
        record = _record(module)
        for name, shape in {} if record is None else record.shapes.items():
            parameter = module._parameters.get(name)
            if parameter is not None:
                parameter.infshape = shape  # type: ignore[attr-defined]
    return model


def attach_after_load(module: nn.Module, incompatible_keys: object) -> None:
    """load_state_dict post hook: assign=True replaces the tensors."""
    attach(module)


def infshape_of(parameter: Tensor, name: str = "") -> InfShape:
    """The InfShape of a tensor. Raises ShapeError if it has none."""
    shape = getattr(parameter, "infshape", None)
    if not isinstance(shape, InfShape):
        what = f"parameter {name!r}" if name else f"a parameter of shape {tuple(parameter.shape)}"
        raise ShapeError(
            f"{what} has no infshape: call mup.set_base_shapes(model, ...) first, or mup.attach(model) if its "
            "tensors were replaced afterwards (to_empty, fully_shard, DataParallel)"
        )
    return shape


def role_of(shape: InfShape, module: nn.Module | None = None) -> Role:
    """The declared role, or the role that follows from shape and layer.

    Raises ShapeError for a shape with more than 2 infinite dimensions and no declared role.
    """
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
        return Role.OUTPUT if shape.reads_out() else Role.INPUT
    return Role.OUTPUT if hasattr(module, "output_mult") else Role.HIDDEN


def describe(shape: InfShape, module: nn.Module | None = None) -> tuple[Role, float, float, float]:
    """Role, r, s and m of a parameter, where m is the multiplier of its width. For a vector r and s equal m."""
    role = role_of(shape, module)
    if len(shape) < 2:
        own = shape.width_mult()
        return role, own, own, own
    fan_in, fan_out = shape.fanin_fanout()
    if role is Role.HIDDEN and shape.role is None and shape.main is not None and shape.main is not fan_in:
        # main was set by hand, or the tensor has 3 or more dimensions and no declaration: main is the fan-in
        fan_in, fan_out = (
            shape.main,
            next((dim for dim in shape if dim.isinf() and dim is not shape.main), fan_out),
        )
    r, s = fan_in.width_mult(), fan_out.width_mult()
    return role, r, s, (r if role in FROM_WIDTH else shape.width_mult())


def ruled_fan_out(role: Role, s: float, own: float) -> float:
    """The s of the rules, given the results of `describe`.

    An input-like matrix has one infinite dimension. The rules call it the fan-out, in whichever layout the weight is.
    """
    return own if role is Role.INPUT else s


def init_rule(shape: InfShape, exponent: float = 1.0) -> float:
    """Factor of the rule on the init std of a parameter, to the power `exponent`. It is equal for all optimizers."""
    role, *mults = describe(shape)
    return TABLE[Family.ADAM][role].init_std.raised(exponent)(*mults)
