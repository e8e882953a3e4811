"""Readout layers with weights of constant size and logits divided by the width multiplier (TP V, Table 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mup.infshape import ShapeError
from mup.roles import infshape_of

__all__ = [
    "MuOutConv1d",
    "MuOutConv2d",
    "MuOutConv3d",
    "MuOutConvTranspose1d",
    "MuOutConvTranspose2d",
    "MuOutConvTranspose3d",
    "MuOutput",
    "MuReadout",
    "MuSharedReadout",
    "rescale_linear_bias",
]

_RESCALED = "mup_rescaled"  # key in the metadata of a state dict: without a new tensor, both packages can load it


class MuOutput(nn.Module):
    """Mixin for layers from a width to a finite dimension. It precedes a torch linear or convolution class.

    readout_zero_init: start with zero weights and bias. output_mult: factor on the output, constant in width.
    The width multiplier is a plain attribute of the module, so the layer works after tensors lose their attributes.
    """

    weight: Any  # as the torch class declares them
    bias: Any
    _tied = False

    def __init__(self, *args: Any, readout_zero_init: bool = False, output_mult: float = 1.0, **kwargs: Any) -> None:
        # nn.Module.__init__ is called last: it keeps plain attributes, and it calls reset_parameters
        self.output_mult = output_mult
        self.readout_zero_init = readout_zero_init
        self._width_mult: float | None = None
        self._has_rescaled_params = False
        self._loaded_rescaled: bool | None = None  # mark of the last loaded state dict; None if none was loaded
        self._loaded_without_mark = False
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        """Initialise as torch does, or to zero. The result is rescaled to muP if base shapes are set."""
        self._has_rescaled_params = False
        if self.readout_zero_init:
            with torch.no_grad():
                self.weight.zero_()
                if self.bias is not None:
                    self.bias.zero_()
        else:
            super().reset_parameters()  # type: ignore[misc]
        if self._width_mult is not None and not self.weight.is_meta:
            self._rescale_parameters()

    def width_mult(self) -> float:
        """Width multiplier of the fan-in. Raises ShapeError before set_base_shapes."""
        if self._width_mult is not None:
            return self._width_mult
        return infshape_of(self.weight, "weight of a readout").width_mult()

    def _rescale_parameters(self) -> None:
        """Rescale torch's default init (std ~ fan_in^-1/2) to muP's (constant). A second call raises RuntimeError."""
        if self._has_rescaled_params:
            raise RuntimeError(
                "the parameters of this readout are already rescaled: pass rescale_params=False to set_base_shapes "
                "for a trained model, or set `_has_rescaled_params = False` on the layer to force it"
            )
        factor = self.width_mult() ** 0.5
        with torch.no_grad():
            if not self._tied:  # a tied weight belongs to the embedding, whose size is already constant in width
                self.weight.mul_(factor)
            if self.bias is not None:
                self.bias.mul_(factor)
        self._has_rescaled_params = True

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]][_RESCALED] = self._has_rescaled_params

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if prefix + "weight" in state_dict:
            mark = local_metadata.get(_RESCALED)
            self._loaded_without_mark = mark is None
            # weights without a mark (the original package, safetensors) count as rescaled: never rescale twice
            self._loaded_rescaled = self._has_rescaled_params = True if mark is None else bool(mark)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scale = self.output_mult / self.width_mult()
        out: Tensor = super().forward(input if scale == 1 else input * scale, *args, **kwargs)
        return out


class MuReadout(MuOutput, nn.Linear):
    """Drop-in for an output nn.Linear, [..., in_features] -> [..., out_features]."""


class MuSharedReadout(MuReadout):
    """A readout that shares its weight [vocabulary, width] with an nn.Embedding.

    The weight of the embedding is never rescaled: it has std sigma, and the logits are multiplied by 1/m.
    Raises ValueError with readout_zero_init, which would set the embedding to zero.
    """

    _tied = True

    def __init__(self, weight: Tensor, bias: bool = True, **kwargs: Any) -> None:
        out_features, in_features = weight.shape
        if kwargs.get("readout_zero_init"):
            raise ValueError("readout_zero_init of a tied readout would set the embedding to zero: use MuReadout")
        kwargs = {"device": weight.device, "dtype": weight.dtype, **kwargs}
        super().__init__(in_features, out_features, bias=bias, **kwargs)
        self.weight = weight

    def reset_parameters(self) -> None:
        """Initialise only the bias: the weight belongs to the embedding."""
        self._has_rescaled_params = False
        if self.bias is not None:
            bound = self.in_features**-0.5
            with torch.no_grad():
                self.bias.uniform_(-bound, bound)
        if self._width_mult is not None and not self.weight.is_meta:
            self._rescale_parameters()


class MuOutConv1d(MuOutput, nn.Conv1d):
    """Drop-in for an output nn.Conv1d."""


class MuOutConv2d(MuOutput, nn.Conv2d):
    """Drop-in for an output nn.Conv2d."""


class MuOutConv3d(MuOutput, nn.Conv3d):
    """Drop-in for an output nn.Conv3d."""


class MuOutConvTranspose1d(MuOutput, nn.ConvTranspose1d):
    """Drop-in for an output nn.ConvTranspose1d."""


class MuOutConvTranspose2d(MuOutput, nn.ConvTranspose2d):
    """Drop-in for an output nn.ConvTranspose2d."""


class MuOutConvTranspose3d(MuOutput, nn.ConvTranspose3d):
    """Drop-in for an output nn.ConvTranspose3d."""


def rescale_linear_bias(linear: nn.Linear | _ConvNd) -> None:
    """Rescale the bias of a linear or convolution layer from torch's default (~ fan_in^-1/2) to constant size.

    Raises RuntimeError if the layer is already rescaled, and ShapeError before set_base_shapes.
    """
    if getattr(linear, "_has_rescaled_params", False):
        raise RuntimeError(
            "the bias of this layer is already rescaled: pass rescale_params=False to set_base_shapes for a "
            "trained model, or set `_has_rescaled_params = False` on the layer to force it"
        )
    if linear.bias is None:
        return
    shape = infshape_of(linear.weight, "weight")
    if len(shape) < 2:
        raise ShapeError(f"a weight of shape {shape!r} has no fan-in")
    with torch.no_grad():
        # torch draws the bias by dimension 1, also in a transposed convolution
        linear.bias.mul_(shape[1].width_mult() ** 0.5)
    linear._has_rescaled_params = True  # type: ignore[assignment]
