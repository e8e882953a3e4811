"""muP for your own torch model: three changes, two checks, and a learning rate that keeps.

    python examples/own_torch_model.py
    python examples/own_torch_model.py --quick --out runs/example

The model is a residual network that learns a function of 32 numbers, from data that the script makes. The script prints
an audit, runs a coordinate check in muP and in the standard parametrization (SP), and then tunes the learning rate of a
narrow and of a wide model. In muP both have the same best rate. It writes OUT/coord_check_mup.png and
OUT/coord_check_sp.png. The exit code is 1 if the coordinate check fails in muP or passes in SP. It needs torch and the
package mup, with matplotlib for the figures. Next: README-MUP.md, for language models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mup

INPUTS, CLASSES, DEPTH, BASE = 32, 10, 3, 64


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class Net(nn.Module):
    """[b, 32] -> logits [b, 10]. in_mup: whether the readout divides by the width."""

    def __init__(self, width: int, in_mup: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUTS, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width)
        readout = mup.MuReadout if in_mup else nn.Linear  # 1. a readout that knows the width
        self.readout = readout(width, CLASSES)
        nn.init.zeros_(self.readout.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.norm(self.blocks(self.embed(x))))
        return logits


def build(width: int, in_mup: bool = True) -> Net:
    model = Net(width, in_mup)
    if in_mup:
        mup.set_base_shapes(model, Net(BASE), delta=Net(2 * BASE))  # 2. which dimensions are widths, and their base
    return model


def optimizer(model: nn.Module, lr: float, in_mup: bool = True) -> torch.optim.Optimizer:
    return mup.MuAdamW(model, lr=lr) if in_mup else torch.optim.AdamW(model.parameters(), lr=lr)  # 3. its rates


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian inputs, and the classes that a fixed random network gives them."""
    teacher = torch.Generator().manual_seed(0)
    first, second = torch.randn(INPUTS, 64, generator=teacher), torch.randn(64, CLASSES, generator=teacher)
    inputs = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed))
    return inputs, (torch.tanh(inputs @ first / INPUTS**0.5) @ second).argmax(1)


def check(out: Path, in_mup: bool) -> bool:
    """Coordinate check over an 8-fold range of widths. Returns whether it passes."""
    models = {width: lambda width=width: build(width, in_mup) for width in (64, 128, 256, 512)}
    records = mup.coord_records(models, samples(64, seed=1), lambda model: optimizer(model, 3e-3, in_mup))
    result = mup.coord_check.verdict(records)
    name = "muP" if in_mup else "SP"
    print(f"\n{name}\n{result.table()}")
    mup.coord_check.plot_verdict(records, result, out / f"coord_check_{name.lower()}.png", name)
    return result.passed


def trained_loss(width: int, lr: float, steps: int) -> float:
    """Held-out loss [nats] of one model after training on fresh samples."""
    torch.manual_seed(0)
    model = build(width)
    adam = optimizer(model, lr)
    schedule = mup.MuScheduler(adam, torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
    for step in range(steps):
        inputs, classes = samples(256, seed=10 + step)
        adam.zero_grad()
        F.cross_entropy(model(inputs), classes).backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        inputs, classes = samples(4096, seed=2)
        return float(F.cross_entropy(model(inputs), classes))


def tune(widths: tuple[int, ...], rates: list[float], steps: int) -> None:
    """Print the held-out loss over the learning rate for each width."""
    print("\nheld-out loss [nats] after", steps, "steps\nwidth " + "".join(f"{f'lr {rate:.1e}':>11}" for rate in rates))
    for width in widths:
        losses = [trained_loss(width, rate, steps) for rate in rates]
        print(f"{width:5d} " + "".join(f"{loss:10.4f}{'*' if loss == min(losses) else ' '}" for loss in losses))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_torch_model"), help="folder of the figures")
    parser.add_argument("--quick", action="store_true", help="tune with fewer steps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = build(4 * BASE)
    print(mup.audit(model, optimizer(model, 3e-3)).table())
    passed, reference = check(options.out, in_mup=True), check(options.out, in_mup=False)
    tune((BASE, 4 * BASE), [2.0**power for power in range(-9, -2)], steps=5 if options.quick else 100)
    outcomes = ("passes" if passed else "FAILS", "PASSES" if reference else "fails, as it must")
    print("\ncoordinate check: muP {}, SP {}".format(*outcomes))
    return int(not passed or reference)


if __name__ == "__main__":
    raise SystemExit(main())
