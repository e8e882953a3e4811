"""Dimensions and shapes with their base sizes: the metadata from which every muP factor is computed.

A dimension with a base size is "infinite" (a width); any other dimension is "finite". Names and semantics are those
of the `mup` package (Yang et al., Tensor Programs V, arXiv:2203.03466, Appendix B). Roles and fan-in dimensions are
additions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mup.rules import FROM_WIDTH, Role

__all__ = ["InfDim", "InfShape", "ShapeError", "zip_infshape"]


class ShapeError(ValueError, AssertionError):
    """Shapes do not fit together or are missing. It is also an AssertionError, as in the original package."""


class InfDim:
    """One dimension of a parameter.

    base_dim: size of a width in the base model; None for a finite dimension.
    dim: size in this model; None if unknown.
    finite_base: size of a *finite* dimension in the base model, if known. It is used only in reports.
    """

    __slots__ = ("base_dim", "dim", "finite_base")

    def __init__(self, base_dim: int | None, dim: int | None, finite_base: int | None = None) -> None:
        self.base_dim = base_dim
        self.dim = dim
        self.finite_base = finite_base

    def isinf(self) -> bool:
        return self.base_dim is not None

    def width_mult(self) -> float:
        """dim / base_dim of a width; 1 for a finite dimension. Raises ShapeError if the size is unknown."""
        if self.base_dim is None:
            return 1.0
        if self.dim is None:
            raise ShapeError(f"{self!r} has no size yet: call set_base_shapes on the model")
        return self.dim / self.base_dim

    def forgotten(self) -> bool:
        """Whether a finite dimension differs from the base model, possibly because no delta model varied a width."""
        return self.base_dim is None and None not in (self.finite_base, self.dim) and self.finite_base != self.dim

    def __repr__(self) -> str:
        return f"InfDim({self.base_dim}, {self.dim})"

    def __str__(self) -> str:
        return repr(self) if self.isinf() else f"FinDim({self.dim})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InfDim) and (self.base_dim, self.dim) == (other.base_dim, other.dim)

    __hash__ = None  # type: ignore[assignment]  # mutable: dim is filled in later


class InfShape(tuple[InfDim, ...]):
    """The InfDims of one parameter, attached to it as `p.infshape`.

    role, fan_in_dim, fan_out_dim: declared by the layer that owns the parameter (mup.declare). None means the
    convention of torch.nn.Linear: [fan_out, fan_in, ...], and a matrix with two infinite dimensions is hidden.
    main_idx: the dimension whose multiplier is `width_mult()`: the declared fan-in, otherwise the last infinite one.
    """

    role: Role | None
    fan_in_dim: int | None
    fan_out_dim: int | None
    main_idx: int | None

    def __new__(cls, dims: Iterable[InfDim] = ()) -> InfShape:
        return super().__new__(cls, tuple(dims))

    def __init__(self, dims: Iterable[InfDim] = ()) -> None:
        if not all(isinstance(dim, InfDim) for dim in self):
            raise ShapeError("an InfShape can contain only InfDim objects")
        self.role = self.fan_in_dim = self.fan_out_dim = None
        self.main_idx = next((i for i in reversed(range(len(self))) if self[i].isinf()), None)

    def declare(self, role: Role | None, fan_in_dim: int | None = None, fan_out_dim: int | None = None) -> None:
        """Set role and layout. Raises ShapeError for a dimension that the shape does not have."""
        for dim in (fan_in_dim, fan_out_dim):
            if dim is not None and not -len(self) <= dim < len(self):
                raise ShapeError(f"dimension {dim} is declared, but the shape {self.shape()} has {len(self)}")
        self.role = role
        self.fan_in_dim = None if fan_in_dim is None else fan_in_dim % len(self)
        self.fan_out_dim = None if fan_out_dim is None else fan_out_dim % len(self)
        if (role is None or role in FROM_WIDTH) and len(self) >= 2 and (role or self.ninf() >= 2):
            fan_in, _ = self.fanin_fanout()
            self.main = fan_in if fan_in.isinf() else None

    def copy_declaration(self, other: InfShape) -> None:
        """Copy role, layout and `main_idx` from another shape of the same rank."""
        self.role, self.fan_in_dim, self.fan_out_dim = other.role, other.fan_in_dim, other.fan_out_dim
        self.main_idx = other.main_idx

    @property
    def main(self) -> InfDim | None:
        return None if self.main_idx is None else self[self.main_idx]

    @main.setter
    def main(self, dim: InfDim | None) -> None:
        self.main_idx = None if dim is None else next(i for i, own in enumerate(self) if own is dim)

    def fanin_fanout(self) -> tuple[InfDim, InfDim]:
        """InfDims of fan-in and fan-out: as declared, otherwise dimensions 1 and 0.

        Raises ShapeError for fewer than 2 dimensions.
        """
        if len(self) < 2:
            raise ShapeError("fan-in and fan-out are not defined for a shape of fewer than 2 dimensions")
        fan_in = (0 if self.fan_out_dim == 1 else 1) if self.fan_in_dim is None else self.fan_in_dim
        fan_out = (1 if fan_in == 0 else 0) if self.fan_out_dim is None else self.fan_out_dim
        return self[fan_in], self[fan_out]

    def reads_out(self) -> bool:
        """Whether a matrix of this shape maps a width to a finite dimension. Raises ShapeError as `fanin_fanout`."""
        fan_in, fan_out = self.fanin_fanout()
        return fan_in.isinf() and not fan_out.isinf()

    def fanin_fanout_mult_ratio(self) -> float:
        fan_in, fan_out = self.fanin_fanout()
        return fan_in.width_mult() / fan_out.width_mult()

    def ninf(self) -> int:
        return sum(dim.isinf() for dim in self)

    def width_mult(self) -> float:
        return 1.0 if self.main is None else self.main.width_mult()

    def base_shape(self) -> list[int | None]:
        return [dim.base_dim for dim in self]

    def shape(self) -> list[int | None]:
        return [dim.dim for dim in self]

    def forgotten(self) -> list[int]:
        """Indices of the finite dimensions whose size differs from the base model."""
        return [i for i, dim in enumerate(self) if dim.forgotten()]

    def serialize(self) -> dict[str, list[int | None]]:
        return {"base_shape": self.base_shape(), "shape": self.shape()}

    @classmethod
    def deserialize(cls, d: Mapping[str, Sequence[int | None]]) -> InfShape:
        return cls(InfDim(base, dim) for base, dim in zip(d["base_shape"], d["shape"], strict=True))

    @classmethod
    def from_base_shape(cls, bsh: Iterable[int | None]) -> InfShape:
        return cls(InfDim(base, None) for base in bsh)

    def __repr__(self) -> str:
        return f"InfShape([{', '.join(map(repr, self))}])"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InfShape) and len(self) == len(other) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def zip_infshape(base_dims: Iterable[Any], dims: Iterable[int], fin_if_same: bool = True) -> InfShape:
    """Return the InfShape of a parameter of shape `dims` relative to its base.

    base_dims: sizes, or the InfDims of a base shape, whose base_dim is kept.
    fin_if_same: whether a size that is equal in both is finite.
    Raises ShapeError if the ranks differ or a base dimension is neither an int nor an InfDim.
    """
    base_list, dim_list = list(base_dims), list(dims)
    if len(base_list) != len(dim_list):
        raise ShapeError(
            f"the base has {len(base_list)} dimensions but the model has {len(dim_list)}: {base_list}, {dim_list}"
        )
    shape = InfShape(_zip_dims(base_list, dim_list, fin_if_same))
    if isinstance(base_dims, InfShape):
        shape.copy_declaration(base_dims)
    return shape


def _zip_dims(base_dims: list[Any], dims: list[int], fin_if_same: bool) -> Iterator[InfDim]:
    for base, dim in zip(base_dims, dims):
        if isinstance(base, InfDim):
            yield InfDim(base.base_dim, dim, base.finite_base)
        elif isinstance(base, int) and not isinstance(base, bool):
            finite = base == dim and fin_if_same
            yield InfDim(None, dim, base) if finite else InfDim(base, dim)
        else:
            raise ShapeError(f"base dimension: expected an int or an InfDim, got {type(base).__name__}")
