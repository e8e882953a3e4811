"""What a layer says of its own parameters: role, kind of initial value, which dimension is the fan-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

from mup.rules import Role

InitKind = Literal["matrix", "output_matrix", "zeros", "ones"]

P = TypeVar("P", bound=Tensor)

_ATTRIBUTE = "neox_declaration"


@dataclass(frozen=True)
class Declaration:
    """init: `matrix` uses init-method, `output_matrix` (ends of residual branches) output-layer-init-method.

    fan_in_dim: the dimension that a matrix product sums over; 1 in torch's [out, in] layout.
    zero_blocks: (period, length): of every `period` rows the first `length` are query rows of a fused QKV matrix,
    zeroed by mup-query-zero-init. value_rows: (period, start, length) of its value rows, in the same way.
    """

    role: Role
    init: InitKind = "matrix"
    fan_in_dim: int = 1
    zero_blocks: tuple[int, int] | None = None
    value_rows: tuple[int, int, int] | None = None


def declare(parameter: P, declaration: Declaration) -> P:
    """Note the declaration on the parameter; `declarations` reads it before the model leaves the meta device."""
    setattr(parameter, _ATTRIBUTE, declaration)
    return parameter


def declarations(model: nn.Module) -> dict[str, Declaration]:
    """Declarations by parameter name. A parameter without one is a programming error: nothing falls back to SP."""
    found = {}
    for name, parameter in model.named_parameters():
        declaration = getattr(parameter, _ATTRIBUTE, None)
        if declaration is None:
            raise TypeError(f"parameter {name} declares no role; its layer must call declare() on it")
        found[name] = declaration
    return found
