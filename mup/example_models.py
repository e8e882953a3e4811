"""The MLP and the CNN of example_plot_coord_check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mup import init as mup_init
from mup.layer import MuReadout
from mup.shape import set_base_shapes

__all__ = ["lazy_models", "random_images"]

CHANNELS, SIDE, CLASSES = 3, 32, 10
_INITS = (
    "default",
    "kaiming_fan_in_normal",
    "kaiming_fan_out_normal",
    "kaiming_fan_in_uniform",
    "kaiming_fan_out_uniform",
)


def random_images(batch_size: int, as_dict: bool = False, flatten: bool = False) -> Any:
    """Return a batch of Gaussian images [b, 3, 32, 32] and labels [b], equal at every call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, CHANNELS, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (batch_size,), generator=generator)
    images = images.flatten(1) if flatten else images
    return {"images": images, "labels": labels} if as_dict else (images, labels)


class _WithLoss(nn.Module):
    """Interface in the style of Hugging Face: keyword inputs, and a dict with the loss as output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def mlp(width: int, batchnorm: bool = False) -> nn.Module:
    """Two hidden layers on flattened images [b, 3072]."""
    layers: list[nn.Module] = []
    for fan_in in (CHANNELS * SIDE * SIDE, width):
        layers += [nn.Linear(fan_in, width)] + [nn.BatchNorm1d(width)] * batchnorm + [nn.ReLU()]
    return nn.Sequential(*layers, MuReadout(width, CLASSES, readout_zero_init=True))


def cnn(width: int, batchnorm: bool = False) -> nn.Module:
    """Two strided convolutions and pooling on images [b, 3, 32, 32]."""
    layers: list[nn.Module] = []
    for channels in (CHANNELS, width):
        layers += [nn.Conv2d(channels, width, 5, stride=2)] + [nn.BatchNorm2d(width)] * batchnorm + [nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, MuReadout(width, CLASSES, readout_zero_init=True))


def lazy_models(
    arch: str,
    widths: Sequence[int],
    mup: bool = True,
    batchnorm: bool = False,
    init: str = "default",
    dict_in_out: bool = False,
) -> dict[int, Callable[[], nn.Module]]:
    """Map width -> function that builds the model with base shapes. The base width is 8; in SP it is the model's own.

    Raises ValueError for an unknown arch or init.
    """
    if arch not in ("mlp", "cnn"):
        raise ValueError(f"arch: expected mlp or cnn, got {arch!r}")
    if init not in _INITS:
        raise ValueError(f"init: expected one of {', '.join(_INITS)}, got {init!r}")
    make = mlp if arch == "mlp" else cnn

    def build(width: int) -> nn.Module:
        net = make(width, batchnorm)
        set_base_shapes(net, make(8, batchnorm) if mup else None, delta=make(16, batchnorm) if mup else None)
        for module in net:  # type: ignore[attr-defined]
            if init != "default" and isinstance(module, (nn.Linear, nn.Conv2d)) and not isinstance(module, MuReadout):
                _, _, _, fan, law = ("_" + init).split("_")
                draw = mup_init.kaiming_normal_ if law == "normal" else mup_init.kaiming_uniform_
                draw(module.weight, mode=f"fan_{fan}", nonlinearity="relu")  # type: ignore[arg-type]
        return _WithLoss(net) if dict_in_out else net

    return {width: (lambda width=width: build(width)) for width in widths}  # type: ignore[misc]
