"""Print the behaviour of a `mup` package as JSON. test_oracle.py runs it with ours and with the original.

`python facts.py FOLDER` prints the facts, writes FOLDER/written.bsh, and reads FOLDER/given.bsh if it exists.
It uses only the API of mup 1.0.0.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import mup
import mup.init as mup_init
from mup.infshape import InfShape

torch.set_num_threads(1)


def mlp(width: int, bias: bool = True) -> Any:
    return nn.Sequential(
        nn.Linear(12, width, bias=bias), nn.ReLU(), nn.Linear(width, 2 * width), mup.MuReadout(2 * width, 7)
    )


def cnn(width: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, 3 * width, 5),
        mup.MuReadout(3 * width, 5),
    )


class Transformer(nn.Module):
    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.attn = nn.MultiheadAttention(width, 2)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.readout = mup.MuReadout(width, 20)


MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    # name: (model, base arguments, delta arguments, target arguments)
    "mlp": (mlp, (8,), (16,), (32,)),
    "mlp_at_base": (mlp, (8,), (16,), (8,)),
    "mlp_narrower": (mlp, (16,), (32,), (8,)),
    "cnn": (cnn, (4,), (6,), (12,)),
    "transformer": (Transformer, (8, 16), (12, 32), (32, 96)),
    "transformer_other_ratio": (Transformer, (8, 16), (12, 24), (32, 32)),
}

INITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "normal": lambda p: mup_init.normal_(p, 0.0, 0.3),
    "uniform": lambda p: mup_init.uniform_(p, -0.2, 0.2),
    "trunc_normal": lambda p: mup_init.trunc_normal_(p, 0.0, 0.5, -1.0, 1.0),
    "xavier_uniform": lambda p: mup_init.xavier_uniform_(p, 1.5),
    "xavier_normal": lambda p: mup_init.xavier_normal_(p, 0.5),
    "kaiming_uniform": lambda p: mup_init.kaiming_uniform_(p, 1.0),
    "kaiming_normal": lambda p: mup_init.kaiming_normal_(p, nonlinearity="relu"),
    "kaiming_fan_out": lambda p: mup_init.kaiming_normal_(p, mode="fan_out"),
}


def build(name: str) -> Any:
    make, base, delta, target = MODELS[name]
    torch.manual_seed(0)
    return mup.set_base_shapes(make(*target), make(*base), delta=make(*delta))


def shape_facts(shape: InfShape) -> dict[str, Any]:
    facts: dict[str, Any] = {"width_mult": shape.width_mult(), "ninf": shape.ninf()}
    facts |= shape.serialize() | {"main_idx": shape.main_idx}
    if len(shape) >= 2:
        facts["ratio"] = shape.fanin_fanout_mult_ratio()
    return facts


def tensor_facts(p: torch.Tensor) -> dict[str, Any]:
    values = p.detach().contiguous()
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return {
        "sha256": digest,
        "std": float(values.double().std(correction=0)),
        "head": values.flatten()[:6].tolist(),
    }


def init_facts(model: nn.Module) -> dict[str, Any]:
    facts = {}
    for init_name, init in INITS.items():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                torch.manual_seed(1)
                facts[f"{init_name} {name}"] = tensor_facts(init(p))
    return facts


def group_facts(model: nn.Module) -> dict[str, Any]:
    names = {id(p): name for name, p in model.named_parameters()}
    some = [p for name, p in model.named_parameters() if "weight" in name]
    rest = [p for name, p in model.named_parameters() if "weight" not in name]
    two_groups = lambda: [{"params": some, "lr": 0.5}, {"params": rest, "weight_decay": 0.25}]  # noqa: E731
    facts = {}
    for optimizer in ("MuAdam", "MuAdamW", "MuSGD"):
        for kind, params in (("flat", list(model.parameters())), ("groups", two_groups())):
            built = getattr(mup, optimizer)(params, lr=0.1, weight_decay=0.01)
            facts[f"{optimizer} {kind}"] = [
                {
                    "lr": g["lr"],
                    "weight_decay": g["weight_decay"],
                    "params": [names[id(p)] for p in g["params"]],
                }
                for g in built.param_groups
                if g["params"]  # the original also creates empty groups
            ]
    return facts


def model_facts(name: str) -> dict[str, Any]:
    model = build(name)
    facts: dict[str, Any] = {
        "infshapes": {key: shape_facts(shape) for key, shape in mup.get_infshapes(model).items()},
        "rescaled": {key: tensor_facts(p) for key, p in model.named_parameters()},
        "groups": group_facts(model),
    }
    readout = model.readout if isinstance(model, Transformer) else model[-1]
    torch.manual_seed(2)
    x = torch.randn(4, readout.in_features)
    facts["readout"] = readout(x).flatten().tolist()
    facts["inits"] = init_facts(model)
    return facts


def main(folder: str) -> None:
    make, base, delta, _ = MODELS["transformer"]
    written = os.path.join(folder, "written.bsh")
    shapes = mup.make_base_shapes(make(*base), make(*delta), written)
    facts: dict[str, Any] = {
        "file": os.path.dirname(os.path.abspath(mup.__file__)),
        "models": {name: model_facts(name) for name in MODELS},
        "base_shapes": {key: shape_facts_of_base(shape) for key, shape in shapes.items()},
        "read_back": {key: shape.base_shape() for key, shape in mup.load_base_shapes(written).items()},
    }
    given = os.path.join(folder, "given.bsh")
    if os.path.exists(given):
        facts["given"] = {key: shape.base_shape() for key, shape in mup.load_base_shapes(given).items()}
        model = mup.set_base_shapes(make(32, 96), given)
        facts["given_infshapes"] = {key: shape_facts(shape) for key, shape in mup.get_infshapes(model).items()}
    json.dump(facts, sys.stdout)


def shape_facts_of_base(shape: InfShape) -> dict[str, Any]:
    return {"base": shape.base_shape(), "ninf": shape.ninf()}


if __name__ == "__main__":
    main(sys.argv[1])
