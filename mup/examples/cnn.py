"""muP for a convolutional network without residual branches. The number of channels is the width.

    python cnn.py [--quick]

Trains with the same learning rates at several widths: in muP the best rate does not depend on the width.
"""

# mypy: disable-error-code="no-untyped-call,no-any-return"

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import mup

CLASSES = 4


class CNN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1)
        self.readout = mup.MuReadout(2 * channels, CLASSES, readout_zero_init=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second, self.third):
            x = F.relu(layer(x))
        return self.readout(x.mean((2, 3)))  # [b, classes]


def in_mup(channels: int) -> nn.Module:
    return mup.set_base_shapes(CNN(channels), CNN(8), delta=CNN(16))


def stripes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images [b, 1, 12, 12] of stripes in one of four directions, and their labels [b]."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(CLASSES, (count,), generator=generator)
    angle = label[:, None, None] * torch.pi / CLASSES
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    phase = 6 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(1.5 * (rows * torch.cos(angle) + columns * torch.sin(angle)) + phase)
    return (wave + 0.5 * torch.randn(count, 12, 12, generator=generator))[:, None], label


def train(channels: int, lr: float, data: tuple[torch.Tensor, torch.Tensor], steps: int) -> float:
    torch.manual_seed(1)
    model = in_mup(channels)
    optimizer = mup.MuAdam(model, lr=lr)
    for _ in range(steps):
        loss = F.cross_entropy(model(data[0]), data[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(F.cross_entropy(model(data[0]), data[1]).detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="smaller widths and fewer steps")
    quick = parser.parse_args().quick
    channels, rates = ((8, 32), (1e-3, 1e-2)) if quick else ((8, 16, 32, 64), (1e-3, 3e-3, 1e-2, 3e-2))
    data = stripes(64 if quick else 256)
    print("loss      " + "".join(f"lr {lr:<9g}" for lr in rates))
    for c in channels:
        losses = [train(c, lr, data, 8 if quick else 20) for lr in rates]
        print(f"width {c:<4d}" + "".join(f"{loss:<12.4f}" for loss in losses))

    widths = (8, 16, 32, 64)
    models = {c: (lambda c=c: in_mup(c)) for c in widths}
    records = mup.coord_records(models, stripes(32), lambda model: mup.MuAdam(model, lr=1e-2))
    print("\n" + mup.coord_check.verdict(records).table())


if __name__ == "__main__":
    main()
