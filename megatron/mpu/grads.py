"""Gradients over the ranks: partial ones are summed, and the norm counts every parameter once.

A parameter that all tensor-parallel ranks hold has the same gradient on each of them, unless the ranks use it
on different data: norms and biases outside the tensor-parallel regions under sequence parallelism (other
positions), and query and key norms always (other heads). Its gradient is then partial, and the full one is
the sum over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from megatron.mpu.communicator import Communicator
from megatron.mpu.sharding import shard_of
from megatron.mpu.topology import ProcessGroups

_ATTRIBUTE = "partial_grads"  # of modules: torch drops attributes of parameters when it makes them anew


def mark_partial_grads(module: nn.Module, *names: str) -> nn.Module:
    """Note that gradients of the module's own parameters, or of those named, are partial; returns it."""
    own = names or tuple(name for name, _ in module.named_parameters(recurse=False))
    object.__setattr__(module, _ATTRIBUTE, own)
    return module


def partial_grad_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with partial gradients by name, in the model's order, which is the same on every rank."""
    found = {}
    for prefix, module in model.named_modules():
        for name in getattr(module, _ATTRIBUTE, ()):
            found[f"{prefix}.{name}" if prefix else name] = getattr(module, name)
    return found


def sync_partial_grads_in_backward(model: nn.Module, group: Communicator) -> list[RemovableHandle]:
    """Sum each partial gradient over the group as soon as it is computed.

    Engines such as DeepSpeed's ZeRO take gradients away as they come. Call it on the materialised model, before the
    engine wraps it. Communication: one all_reduce for each such parameter and backward pass.
    """
    if group.size == 1:
        return []
    return [p.register_hook(group.all_reduce) for p in partial_grad_parameters(model).values()]


def counts_here(parameter: nn.Parameter, tensor_rank: int) -> bool:
    """Whether a sum over the ranks of one replica counts this rank's copy of a parameter, so that each counts once."""
    # DeepSpeed marks the copies of a tied parameter on stages other than the one that owns it
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return tensor_rank == 0 or shard_of(parameter) is not None


@torch.no_grad()
def global_grad_norm(parameters: Iterable[nn.Parameter], groups: ProcessGroups) -> Tensor:
    """L2 norm of the whole model's gradient, replicated parameters counted once: fp32 [], equal on all ranks.

    Call it where `.grad` is complete: averaged over the data-parallel ranks, partial gradients summed. Every
    rank must call it. Communication: one all_reduce of 8 bytes over the tensor- and pipeline-parallel ranks.
    """
    parameters = list(parameters)
    device = parameters[0].device if parameters else torch.device("cpu")
    norms = [
        torch.linalg.vector_norm(p.grad, dtype=torch.float32)
        for p in parameters
        if p.grad is not None and counts_here(p, groups.tensor.rank)
    ]
    squares = (
        torch.stack(norms).double().square().sum() if norms else torch.zeros((), dtype=torch.double, device=device)
    )
    return groups.model.all_reduce(squares).sqrt().float()
