"""Optimizers over muP's parameter groups. DeepSpeed wraps what is made here."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megatron.errors import ConfigError

Groups = list[dict[str, Any]]


GradNorm = Callable[[list[nn.Parameter]], Tensor]


def local_grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of the gradients that this process holds."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class _Step:
    """Mixed into a torch optimizer: clip and record the gradient norm, decay independently, then step.

    DeepSpeed's wrapped optimizers (ZeRO, bf16, fp16) clip by themselves and leave `_global_grad_norm`; its plain
    path clips without telling the norm, so there `clip_to` is set here and DeepSpeed's own clipping is off.
    `grad_norm` is the norm over all ranks that share the model.
    """

    held: bool = False
    clip_to: float | None = None
    grad_norm: GradNorm = staticmethod(local_grad_norm)
    _global_grad_norm: Tensor | None = None
    param_groups: Groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if self.held:
            return None
        if self.clip_to is not None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            self._global_grad_norm = self.grad_norm(parameters)
            if self.clip_to > 0:
                nn.utils.clip_grads_with_norm_(parameters, self.clip_to, self._global_grad_norm)
        for group in self.param_groups:
            if decay := group.get("independent_weight_decay", 0.0):
                for p in group["params"]:
                    if p.grad is not None:
                        p.mul_(1.0 - decay)
        loss: float | None = super().step(closure)  # type: ignore[misc]  # of the torch optimizer next in line
        return loss


@contextlib.contextmanager
def hold(optimizer: Any) -> Iterator[None]:
    """Let steps of `optimizer` do nothing, while DeepSpeed wraps it.

    Its half-precision wrappers of ZeRO stage 0 make room for the optimizer's state by a step on gradients of zero.
    Such a step decays the weights at the peak rate, and Adam counts it in its bias correction: the first real update
    is then a quarter too small.
    """
    optimizer.held = True
    try:
        yield
    finally:
        optimizer.held = False


def check_overflow_by_norm(optimizer: Any) -> None:
    """Keep ZeRO 1 and 2 from searching every gradient for infinities before each update.

    They also refuse an update whose gradient norm is not finite, and no gradient with an infinity or NaN has a finite
    norm. The search starts several kernels for each parameter: a fifth of a step of a 125M model on one H200.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(optimizer, DeepSpeedZeroOptimizer) and optimizer.compute_grad_norm:
        optimizer.check_overflow = lambda partition_gradients=True: None


class AdamW(_Step, torch.optim.AdamW):  # type: ignore[misc]  # torch overloads step for a decorator
    """torch's AdamW, fused where the parameters allow."""


class SGD(_Step, torch.optim.SGD):  # type: ignore[misc]
    """torch's SGD with momentum."""


def _external(module: str, name: str, key: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"optimizer.type {key} needs {module}, which cannot be imported: {error}") from error


def make_optimizer(
    kind: str,
    groups: Groups,
    *,
    betas: tuple[float, float],
    momentum: float = 0.0,
    nesterov: bool = False,
    implementation: str = "torch",
    clip_to: float | None = None,
    grad_norm: GradNorm = local_grad_norm,
) -> torch.optim.Optimizer:
    """An optimizer over groups that bring their own lr, eps and weight decay.

    kind: adam (decoupled decay, as GPT-NeoX's FusedAdam) or sgd. implementation: torch, deepspeed or apex.
    clip_to: None where DeepSpeed clips; else the largest gradient norm, as `grad_norm` tells it, 0 for no clipping.
    """
    if kind == "sgd":
        if implementation != "torch":
            raise ConfigError(f"optimizer.type SGD has no {implementation} implementation here; use torch's")
        plain = [{k: v for k, v in group.items() if k != "eps"} for group in groups]
        sgd = SGD(plain, lr=groups[0]["lr"], momentum=momentum, nesterov=nesterov)
        sgd.clip_to, sgd.grad_norm = clip_to, grad_norm
        return sgd
    if kind not in ("adam", "adamw"):
        raise ConfigError(f"optimizer {kind!r} is not supported; use Adam or SGD")
    if implementation == "torch":
        adam = AdamW(groups, lr=groups[0]["lr"], betas=betas, fused=True)
        adam.clip_to, adam.grad_norm = clip_to, grad_norm
        return adam
    if implementation == "deepspeed":
        fused: Any = _external("deepspeed.ops.adam", "FusedAdam", "FusedAdam")
    else:
        fused = _external("apex.optimizers", "FusedAdam", "apex.FusedAdam")
    mixed = type("FusedAdamW", (_Step, fused), {"clip_to": clip_to, "grad_norm": staticmethod(grad_norm)})
    adam_w: torch.optim.Optimizer = mixed(groups, lr=groups[0]["lr"], betas=betas, adam_w_mode=True)
    return adam_w
