"""torch.compile, layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from megatron.model.block import Block
from megatron.model.embedding import Readout
from megatron.model.moe import expert_layers


def compile_layers(model: nn.Module, seq_length: int, device: torch.device) -> None:
    """Compile every block and the readout of `model` in place, for training at `seq_length`.

    Blocks are compiled one by one because they share one program. Compilation of a deep model takes as long as that
    of a shallow one, and activation checkpointing around blocks works as before. Parameters keep their names.
    Routers and experts are not compiled, because the sizes of their products depend on the data.
    """
    for layer in expert_layers(model):
        layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[method-assign]
    for module in model.modules():
        if isinstance(module, Block) and module.attention.rotary is not None:
            module.attention.rotary.prepare(seq_length, device)
        if isinstance(module, Block | Readout):
            module.compile()
