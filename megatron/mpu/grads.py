"""Gradients over the ranks: sums of partial gradients, and a norm that counts every parameter once.

A replicated parameter has the same gradient on every tensor-parallel rank, unless the ranks apply it to different
data. Then each rank's gradient is partial, and the full gradient is the sum over the ranks. This is the case for
norms and biases outside the tensor-parallel regions under sequence parallelism (each rank has other positions),
and always for query and key norms (each rank has other heads).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from megatron.mpu.communicator import Communicator
from megatron.mpu.sharding import shard_of
from megatron.mpu.topology import ProcessGroups

_ATTRIBUTE = "partial_grads"  # set on modules: torch drops attributes of a parameter when it creates a new one


def mark_partial_grads(module: nn.Module, *names: str) -> nn.Module:
    """Mark the gradients of the module's direct parameters, or of those in `names`, as partial. Returns the module."""
    own = names or tuple(name for name, _ in module.named_parameters(recurse=False))
    object.__setattr__(module, _ATTRIBUTE, own)
    return module


def partial_grad_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with partial gradients by name, in the order of the model, which is equal on every rank."""
    found = {}
    for prefix, module in model.named_modules():
        for name in getattr(module, _ATTRIBUTE, ()):
            found[f"{prefix}.{name}" if prefix else name] = getattr(module, name)
    return found


def sync_partial_grads_in_backward(model: nn.Module, group: Communicator) -> list[RemovableHandle]:
    """Sum each partial gradient over the group as soon as it is computed.

    Engines such as DeepSpeed's ZeRO consume gradients during the backward pass. Call this function on the
    materialised model before the engine wraps it.
    Communication: one all_reduce per such parameter and backward pass.
    """
    if group.size == 1:
        return []
    return [p.register_hook(group.all_reduce) for p in partial_grad_parameters(model).values()]


def counts_here(parameter: nn.Parameter, tensor_rank: int) -> bool:
    """Whether this rank's copy of a parameter counts in a sum over the ranks of one replica.

    Every parameter counts exactly once in such a sum.
    """
    # DeepSpeed marks the copies of a tied parameter on the stages that do not own it
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return tensor_rank == 0 or shard_of(parameter) is not None


@torch.no_grad()
def global_grad_norm(parameters: Iterable[nn.Parameter], groups: ProcessGroups) -> Tensor:
    """L2 norm of the gradient of the whole model: fp32 [], equal on all ranks. Replicated parameters count once.

    Every rank must call it once `.grad` is complete: averaged over the data-parallel ranks, with partial gradients
    summed. Communication: one all_reduce of 8 bytes over the tensor- and pipeline-parallel ranks.
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
