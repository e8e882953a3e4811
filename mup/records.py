"""Record the activations of any torch model with forward hooks, and the statistics of the original package."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mup.layer import MuOutput
from mup.roles import declaration
from mup.rules import Role

__all__ = ["FDICT", "Coordinates", "Statistic", "convert_fdict", "cov", "covoffdiag", "hooked", "tensors_of"]

Statistic = Callable[[Tensor], Tensor]
Sink = Callable[[str, nn.Module, Any, Any], None]  # name, module, inputs, output
Extra = Callable[[str, nn.Module, Any], Iterable[tuple[str, Tensor]]]  # name, module, inputs -> tensors by name
Sizes = dict[str, tuple[float, int, bool]]  # kind -> sum of the mean sizes of its tensors, their number, may_vanish


def cov(x: Tensor) -> Tensor:
    """Gram matrix [N, N] of the N vectors along the last dimension of x, divided by the length of the vectors."""
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
    """Return the mapping with names of FDICT replaced by their functions."""
    return {key: FDICT[f] if isinstance(f, str) else f for key, f in d.items()}


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the floating-point tensors in a nested output, named `name[key]`. Other values are ignored."""
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
    """Call `sink` on every forward pass of the modules whose name `keep` accepts. The hooks are removed on exit."""

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


def is_output(module: nn.Module) -> bool:
    """Whether a module maps a width to a finite dimension: it is a readout, tied or not, or has such a role."""
    declared = declaration(module, "weight")
    return isinstance(module, MuOutput) or (declared is not None and declared.role in (Role.OUTPUT, Role.VALUE))


class Coordinates:
    """Measures the size of a model's activations on one batch, and of their change since the first measurement.

    run: runs the model once, in the mode to measure.
    keep(name): whether to record a module; by default all modules.
    kind(name): name under which a tensor is recorded, by default its name. Tensors of one kind are averaged.
    extra(name, module, inputs): additional tensors of a module by name, for example attention logits inside a kernel.
    outputs(module): whether a module maps a width to a finite dimension. The output of such a module, and of the
        whole model, is allowed to vanish at init as the width grows (Tensor Programs V, arXiv:2203.03466,
        Appendix D.1). Its records have may_vanish set.
    shrinks: kinds that are allowed to vanish at every step: outputs of random weights from a width to a finite
        dimension, for example of a tied readout. They also multiply every change below them, and this part shrinks.
    pool: for a model spread over processes, merges their tables by adding the sums and numbers of equal kinds.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[], Any],
        *,
        keep: Callable[[str], bool] | None = None,
        kind: Callable[[str], str] = str,
        extra: Extra | None = None,
        outputs: Callable[[nn.Module], bool] = is_output,
        shrinks: Container[str] = (),
        pool: Callable[[Sizes], Sizes] | None = None,
    ) -> None:
        self.model, self.run, self.keep = model, run, keep
        self.kind, self.extra, self.outputs = kind, extra, outputs
        self.shrinks, self.pool = shrinks, pool
        self._initial: dict[str, Tensor] = {}
        self._of_outputs: set[str] = set()

    def measure(self, t: int) -> list[dict[str, Any]]:
        """Measure and return records of module, t, statistic, value, may_vanish. The random state does not change.

        The first call measures "mean_abs" (mean |x|), later ones "rms_delta" (RMS of x - x_0 over batch and features).
        """
        found = self._activations()
        first = not self._initial
        self._initial = self._initial or found
        sizes: Sizes = {}
        for name, x in found.items():
            start = self._initial.get(name)
            if start is not None and start.shape == x.shape:
                size = float(x.abs().mean() if first else (x - start).square().mean())
                kind = self.kind(name)
                total, number, _ = sizes.get(kind, (0.0, 0, False))
                vanishing = kind in self.shrinks or (first and kind in self._of_outputs)
                sizes[kind] = (total + size, number + 1, vanishing)
        sizes = sizes if self.pool is None else self.pool(sizes)
        statistic, power = ("mean_abs", 1.0) if first else ("rms_delta", 0.5)
        return [
            {
                "module": kind,
                "t": t,
                "statistic": statistic,
                "value": (total / number) ** power,
                "may_vanish": may_vanish,
            }
            for kind, (total, number, may_vanish) in sizes.items()
        ]

    def _activations(self) -> dict[str, Tensor]:
        """Output tensors of every module in float32. The second call of a module is named `name#1`."""
        found: dict[str, Tensor] = {}

        def sink(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            extra = () if self.extra is None else self.extra(name, module, inputs)
            for key, x in (*tensors_of(output, name), *extra):
                call = sum(other == key or other.startswith(f"{key}#") for other in found)
                found[f"{key}#{call}" if call else key] = x.float().clone()
                if not name or self.outputs(module):
                    self._of_outputs.add(self.kind(key))

        with hooked(self.model, sink, self.keep), torch.no_grad(), torch.random.fork_rng():
            self.run()
        return found
