"""muP for a decoder-only Transformer: attention scale, tied embedding, audit and coordinate check.

python transformer.py [--quick]
"""

# mypy: disable-error-code="no-untyped-call,no-any-return"

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import mup

VOCAB, SEQ, HEADS, BASE = 48, 24, 4, 32
SIGMA = 0.05


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        # sqrt(base head dimension) / head dimension, which is torch's 1/sqrt(d) at the base width
        self.scale = mup.attention_scale(width // HEADS, BASE // HEADS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCAB, width), nn.Embedding(SEQ, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.readout = mup.MuSharedReadout(self.embed.weight, bias=False)  # logits x 1/m; the embedding is unchanged

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.readout(self.norm(self.blocks(x)))  # [b, s, vocabulary]


def in_mup(width: int) -> Transformer:
    model = Transformer(width)
    with torch.device("meta"):  # only the shapes of the base are needed
        base, delta = Transformer(BASE), Transformer(2 * BASE)
    mup.set_base_shapes(model, base, delta=delta)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            mup.init.normal_(p, std=SIGMA)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    for block in model.blocks:
        assert isinstance(block, Block)
        nn.init.zeros_(block.qkv.weight[:width].data)  # zero queries: logits do not shrink at init
    return model


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(mup.param_groups(model, lr=3e-3, weight_decay=0.01, eps=1e-8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps = 10 if parser.parse_args().quick else 60
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (8, SEQ + 1), generator=generator)
    batch = (tokens[:, :-1], tokens[:, 1:])

    torch.manual_seed(0)
    model, base = in_mup(128), in_mup(BASE)
    report = mup.audit(
        model,
        optimizer(model),
        options=mup.Options(),
        forward=lambda: model(batch[0]),
        base_head_dim=BASE // HEADS,
        base={name: float(p.detach().std(correction=0)) for name, p in base.named_parameters()},
    )
    print(report.table(), "\n")

    adam = optimizer(model)
    schedule = mup.MuScheduler(adam, torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps, eta_min=3e-4)
    for step in range(steps):
        loss = F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step:2d}  loss {float(loss.detach()):.4f}  base lr {schedule.get_base_lr()[0]:.2e}")

    models = {w: (lambda w=w: in_mup(w)) for w in (32, 64, 128, 256)}
    print("\n" + mup.coord_check.verdict(mup.coord_records(models, batch, optimizer)).table())


if __name__ == "__main__":
    main()
