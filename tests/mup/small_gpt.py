"""A small GPT in muP, built through the public API, with the mistakes of the mutation table as options."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mup
from mup import MuReadout, MuSharedReadout

BASE_WIDTH, VOCAB, SEQ, BATCH = 32, 64, 16, 8
SIGMA, LR, EPS = 0.02, 3e-3, 1e-8

MUTATIONS = (
    "sp",
    "hidden_lr_unscaled",
    "hidden_init_unscaled",
    "no_readout_mult",
    "readout_sqrt",
    "embedding_lr_scaled",
    "tied_sqrt",
    "attention_sqrt",
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the GPT. growing_heads: 4 heads whose dimension grows with the width, instead of more heads of 16."""

    width: int = BASE_WIDTH
    layers: int = 2
    growing_heads: bool = False
    kv_group: int = 1  # query heads per KV head
    fixed_kv_heads: int | None = None  # the same number at every width: keys and values have a finite fan-out
    values_as_hidden: bool = False  # a mistake if the number of KV heads is fixed
    tied: bool = False
    swiglu: bool = False

    @property
    def heads(self) -> int:
        return 4 if self.growing_heads else self.width // 16

    @property
    def kv_heads(self) -> int:
        return self.fixed_kv_heads or self.heads // self.kv_group

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class Attention(nn.Module):
    def __init__(self, shape: Shape, scale: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.scale = scale
        self.q = nn.Linear(shape.width, self.heads * self.head_dim)
        self.k = nn.Linear(shape.width, self.kv_heads * self.head_dim)
        fixed = shape.fixed_kv_heads is not None and not shape.values_as_hidden
        self.v = (MuReadout if fixed else nn.Linear)(shape.width, self.kv_heads * self.head_dim)
        self.out = nn.Linear(self.heads * self.head_dim, shape.width)
        self.logits = nn.Identity()
        for projection in (self.k,) if fixed else (self.k, self.v):
            mup.declare(projection, role=mup.Role.HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q, k, v = (
            projection(x).view(b, s, heads, self.head_dim).transpose(1, 2)
            for projection, heads in ((self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads))
        )
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        self.logits(q @ k.transpose(-1, -2) * self.scale)  # for the hooks; the real logits are inside the kernel
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(b, s, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        ffn = 4 * shape.width
        self.up = nn.Linear(shape.width, ffn)
        self.gate = nn.Linear(shape.width, ffn) if shape.swiglu else None
        self.down = nn.Linear(ffn, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)
        return self.down(F.gelu(up) if self.gate is None else F.silu(self.gate(x)) * up)


class Block(nn.Module):
    def __init__(self, shape: Shape, scale: float, branch: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.attn, self.mlp, self.branch = Attention(shape, scale), MLP(shape), branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.branch * self.attn(self.ln1(x))
        return x + self.branch * self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, shape: Shape, scale: float, branch: float = 1.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, shape.width)
        self.position = nn.Embedding(SEQ, shape.width)
        self.blocks = nn.ModuleList(Block(shape, scale, branch) for _ in range(shape.layers))
        self.final, self.norm = (
            nn.Identity(),
            nn.LayerNorm(shape.width),
        )  # final: the residual stream at the end
        if shape.tied:
            self.readout: MuReadout = MuSharedReadout(self.embed.weight, bias=False)
        else:
            self.readout = MuReadout(shape.width, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(self.final(x)))


def build(shape: Shape, mutation: str = "", zero_init: bool = True, branch: float = 1.0) -> GPT:
    """Build a GPT in muP (base width 32), or with one mistake.

    zero_init: start with zero queries and zero outputs, because their initial values hide the change in training.
    Outputs are the readout (unless it is tied) and the values of a fixed number of heads.
    """
    base_shape = replace(shape, width=BASE_WIDTH)
    scale = mup.attention_scale(shape.head_dim, base_shape.head_dim)
    if mutation in ("sp", "attention_sqrt"):
        scale = shape.head_dim**-0.5
    model = GPT(shape, scale, branch)
    if mutation == "sp":
        mup.set_base_shapes(model, None)
    else:
        with torch.device("meta"):
            base = GPT(base_shape, 1.0)
            delta = GPT(replace(base_shape, width=2 * BASE_WIDTH), 1.0)
        mup.set_base_shapes(model, base, delta=delta)
    m = shape.width / BASE_WIDTH
    for name, p in model.named_parameters():
        if p.dim() == 1:
            (nn.init.ones_ if name.endswith("weight") else nn.init.zeros_)(p)
        elif mutation == "sp" and "blocks" in name:  # SP with an init that depends on the width: 1/sqrt(fan_in)
            nn.init.normal_(p, std=SIGMA * (BASE_WIDTH / shape.width) ** 0.5)
        else:
            mup.init.normal_(p, std=SIGMA)
        if mutation == "hidden_init_unscaled" and "blocks" in name and p.dim() == 2:
            nn.init.normal_(p, std=SIGMA)
    with torch.no_grad():
        if zero_init:
            blocks: Any = model.blocks
            for block in blocks:
                block.attn.q.weight.zero_()
                if isinstance(block.attn.v, MuReadout):
                    block.attn.v.weight.zero_()
            if not shape.tied:
                model.readout.weight.zero_()
        if mutation == "tied_sqrt":
            model.embed.weight.mul_(math.sqrt(m))
    readout = {"no_readout_mult": m, "readout_sqrt": math.sqrt(m)}
    model.readout.output_mult *= readout.get(mutation, 1.0)
    return model


def optimizer(model: GPT, mutation: str = "", lr: float = LR) -> torch.optim.Optimizer:
    adam = torch.optim.AdamW(mup.param_groups(model, lr=lr, eps=EPS))
    if mutation == "hidden_lr_unscaled":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    if mutation == "embedding_lr_scaled":
        m = mup.get_infshapes(model)["embed.weight"].width_mult()
        table = {id(model.embed.weight), id(model.position.weight)}
        groups = [
            {"params": [p for p in group["params"] if (id(p) in table) == special], "lr": lr}
            for group in adam.param_groups
            for special, lr in ((False, group["lr"]), (True, group["lr"] / m))
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    return adam


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1234 + seed)
    tokens = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def records(
    shape: Shape,
    mutation: str = "",
    widths: tuple[int, ...] = (32, 64, 128, 256),
    seeds: Any = (0, 1, 2),
    zero_init: bool = True,
) -> list[dict[str, Any]]:
    models = {w: (lambda w=w: build(replace(shape, width=w), mutation, zero_init)) for w in widths}
    make_optimizer: Any = lambda model: optimizer(model, mutation)  # noqa: E731
    return mup.coord_records(models, batch(), make_optimizer, seeds=seeds)
