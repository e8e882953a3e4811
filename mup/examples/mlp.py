"""muP for an MLP in three lines, checked by a coordinate check with the standard parametrization as reference.

    python mlp.py [--quick]

Runs on a CPU in well under a minute. Needs only torch and numpy.
"""

# mypy: disable-error-code="no-untyped-call,no-any-return"

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import mup

DIM_IN, CLASSES = 32, 10


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(DIM_IN, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        mup.MuReadout(width, CLASSES, readout_zero_init=True),  # 1. the output layer
    )


def in_mup(width: int) -> nn.Module:
    return mup.set_base_shapes(mlp(width), mlp(32), delta=mlp(64))  # 2. the base shapes


def in_sp(width: int) -> nn.Module:
    return mup.set_base_shapes(mlp(width), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="smaller widths")
    widths = (32, 64, 128, 256) if parser.parse_args().quick else (64, 128, 256, 512, 1024)
    torch.manual_seed(0)
    x = torch.randn(64, DIM_IN)
    batch = (x, (x[:, :CLASSES] + 0.5 * torch.randn(64, CLASSES)).argmax(1))

    model = in_mup(widths[-1])
    optimizer = mup.MuAdamW(model, lr=1e-2)  # 3. the optimizer
    print(mup.audit(model, optimizer).table(), "\n")
    for step in range(20):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            print(f"step {step:2d}  loss {float(loss.detach()):.4f}")

    def records(build: object, make_optimizer: object) -> list[dict[str, object]]:
        models = {w: (lambda w=w: build(w)) for w in widths}  # type: ignore[operator]
        return mup.coord_records(models, batch, make_optimizer)  # type: ignore[arg-type]

    checked = records(in_mup, lambda model: mup.MuAdamW(model, lr=1e-2))
    sp = records(in_sp, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2))
    print("\n" + mup.coord_check.verdict(checked, reference=sp).table())


if __name__ == "__main__":
    main()
