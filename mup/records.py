"""Recording activations of any torch model with forward hooks, and the statistics of the original package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FDICT", "Statistic", "convert_fdict", "cov", "covoffdiag", "hooked", "tensors_of"]

Statistic = Callable[[Tensor], Tensor]
Sink = Callable[[str, nn.Module, Any, Any], None]  # name, module, inputs, output


def cov(x: Tensor) -> Tensor:
    """Gram matrix [N, N] of the N vectors along the last dimension of x, divided by their length."""
    rows = x.reshape(1, 1) if x.nelement() == 1 else x.reshape(-1, x.shape[-1])
    return rows @ rows.T / rows.shape[-1]


def covoffdiag(x: Tensor) -> Tensor:
    """The off-diagonal entries of `cov(x)`, as a vector."""
    c = cov(x)
    return c[~torch.eye(c.shape[0], dtype=torch.bool, device=c.device)]


FDICT: dict[str, Statistic] = {
    "l1": lambda x: x.abs().mean(),
    "l2": lambda x: (x**2).mean() ** 0.5,
    "mean": lambda x: x.mean(),
    "std": lambda x: x.std(),
    "covl1": lambda x: cov(x).abs().mean(),
    "covl2": lambda x: (cov(x) ** 2).mean() ** 0.5,
    "covoffdiagl1": lambda x: covoffdiag(x).abs().mean(),
    "covoffdiagl2": lambda x: (covoffdiag(x) ** 2).mean() ** 0.5,
}


def convert_fdict(d: Mapping[str, str | Statistic]) -> dict[str, Statistic]:
    """The same mapping, with names of FDICT replaced by its functions."""
    return {key: FDICT[f] if isinstance(f, str) else f for key, f in d.items()}


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in an output of any nesting, named `name[key]`; None and the rest are passed over."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}[{key}]")
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from tensors_of(item, f"{name}[{i}]")


@contextmanager
def hooked(model: nn.Module, sink: Sink, keep: Callable[[str], bool] | None = None) -> Iterator[None]:
    """While open, every forward of a module (whose name `keep` accepts) is told to `sink`. Hooks never stay behind."""

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            with torch.no_grad():
                sink(name, module, inputs, output)

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if keep is None or keep(name):
                handles.append(module.register_forward_hook(hook_for(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
