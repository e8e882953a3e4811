"""Optimizers over muP's parameter groups, which DeepSpeed wraps."""

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
    """L2 norm of the gradients of this process."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class _Step:
    """Mixin for a torch optimizer: clip gradients and record their norm, apply independent weight decay, then step.

    The wrapped optimizers of DeepSpeed (ZeRO, bf16, fp16) clip and set `_global_grad_norm`. Without a wrapper
    DeepSpeed clips but does not report the norm; `clip_to` is then set here, and DeepSpeed's clipping is off.
    `grad_norm` is the norm over all ranks that share the model. If that norm is not finite, no update is made and
    `overflow` is True, as in the wrappers.
    """

    held: bool = False
    overflow: bool = False
    clip_to: float | None = None
    grad_norm: GradNorm = staticmethod(local_grad_norm)
    _global_grad_norm: Tensor | None = None
    param_groups: Groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if self.clip_to is not None and not self._clip(self.clip_to):
            return None
        if self.held:
            return None
        for group in self.param_groups:
            if decay := group.get("independent_weight_decay", 0.0):
                share = group["lr"] / group["peak_lr"] if group["peak_lr"] else 0.0
                for p in group["params"]:
                    if p.grad is not None:
                        p.mul_(1.0 - decay * share)
        loss: float | None = super().step(closure)  # type: ignore[misc]  # of the torch optimizer next in line
        return loss

    def _clip(self, maximum: float) -> bool:
        """Record the gradient norm and clip to `maximum`. Returns whether the gradient is finite."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._global_grad_norm = norm = self.grad_norm(parameters)
        self.overflow = not bool(norm.isfinite())
        if maximum > 0:
            nn.utils.clip_grads_with_norm_(parameters, maximum, norm)
        return not self.overflow


@contextlib.contextmanager
def hold(optimizer: Any) -> Iterator[None]:
    """Make steps of `optimizer` change no weights and no state, while DeepSpeed wraps it or for an unwanted update.

    The half-precision wrappers of ZeRO stage 0 allocate the state of the optimizer by a step with zero gradients.
    Such a step decays the weights at the peak rate, and Adam counts it in its bias correction, which makes the first
    real update a quarter too small.
    """
    optimizer.held = True
    try:
        yield
    finally:
        optimizer.held = False


def check_overflow_by_norm(optimizer: Any) -> None:
    """Turn off the search for infinities in every gradient that ZeRO 1 and 2 do before each update.

    ZeRO also skips an update if the gradient norm is not finite, and a gradient with an infinity or NaN never has a
    finite norm. The search starts several kernels per parameter: a fifth of a step of a 125M model on one H200.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(optimizer, DeepSpeedZeroOptimizer) and optimizer.compute_grad_norm:
        optimizer.check_overflow = lambda partition_gradients=True: None


class AdamW(_Step, torch.optim.AdamW):  # type: ignore[misc]  # torch overloads step for a decorator
    """torch's AdamW with independent weight decay, clipping and a recorded norm."""


class SGD(_Step, torch.optim.SGD):  # type: ignore[misc]
    """torch's SGD with independent weight decay, clipping and a recorded norm."""


def _external(module: str, name: str, key: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"optimizer.type {key}: {module} cannot be imported: {error}; install it") from error


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
    """Create an optimizer over groups with their own lr, eps and weight decay.

    kind: adam (decoupled decay, as in GPT-NeoX's FusedAdam) or sgd.
    implementation: torch, deepspeed or apex.
    clip_to: maximum of the gradient norm, 0 for no clipping; None if DeepSpeed clips.
    grad_norm: function that computes the gradient norm.
    Raises ConfigError if the optimizer is not supported or cannot be imported.
    """
    if kind == "sgd":
        if implementation != "torch":
            raise ConfigError(f"optimizer.type SGD has no {implementation} implementation; use that of torch")
        plain = [{k: v for k, v in group.items() if k != "eps"} for group in groups]
        sgd = SGD(plain, lr=groups[0]["lr"], momentum=momentum, nesterov=nesterov)
        sgd.clip_to, sgd.grad_norm = clip_to, grad_norm
        return sgd
    if kind not in ("adam", "adamw"):
        raise ConfigError(f"optimizer.type {kind!r} is not supported; use Adam or SGD")
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
