"""Mixture of experts without dropped tokens: router, experts, and the losses of the router.

Sources:
  [SWITCH] Fedus, Zoph, Shazeer, Switch Transformers, arXiv:2101.03961 (balancing loss, jitter).
  [BASE]   Clark et al., Unified Scaling Laws for Routed Language Models, arXiv:2202.01169, section 3 (Sinkhorn).
  [ST-MOE] Zoph et al., ST-MoE, arXiv:2202.08906 (z-loss of the router).
  [DSMOE]  Dai et al., DeepSeekMoE, arXiv:2401.06066, eq. 12 to 14 (balancing loss per sequence, top-k).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.architecture import GATED_ACTIVATIONS, Activation, MixtureOfExperts
from megatron.model.grouped import grouped_linear
from megatron.model.mlp import gate_or_activate
from megatron.mpu import SERIAL, Shard, ShardedModule, TensorParallel, local_shape, mark_partial_grads
from mup.roles import Declaration, declare_as
from mup.rules import Role

_SINKHORN_STEPS = 3  # as in GPT-NeoX


class Router(nn.Module):
    """Hidden states to one logit per expert. It is a readout: from a width to a finite number of experts.

    The weight [num_experts, h] is on every tensor-parallel rank. Under sequence parallelism a rank computes the logits
    of its positions, so its gradient is partial.
    mult: 1 / (m * mup-output-temp), as in the readout of the model.
    """

    def __init__(
        self, hidden_size: int, num_experts: int, *, mult: float, jitter: float, tp: TensorParallel = SERIAL
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        declare_as(self, "weight", Declaration(Role.OUTPUT))
        if tp.cuts_sequence:
            mark_partial_grads(self)
        self.mult = mult
        self.jitter = jitter
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, s, h], or this rank's slice of s -> at least fp32 [b, s, num_experts] on every rank."""
        if self.jitter and self.training:
            with self.tp.inside() if self.tp.cuts_sequence else nullcontext():
                x = x * torch.empty_like(x).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
        x = x if self.mult == 1.0 else x * self.mult
        logits = self.tp.enter(F.linear(x, self.weight))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def sinkhorn(logits: Tensor, steps: int = _SINKHORN_STEPS) -> Tensor:
    """Scale the rows and columns of exp(logits) alternately towards equal sums: [.., s, n] -> [.., s, n].

    In the limit of many steps the entries of a token add up to 1/s and those of an expert to 1/n: every expert gets
    the same share of the sequence. After any number of steps the sums over the tokens are exact. Source: [BASE].
    """
    kernel = (logits - logits.amax((-2, -1), keepdim=True)).exp()
    s, n = kernel.shape[-2:]
    tiny = 1e-8
    columns = 1.0 / (n * kernel.sum(-2, keepdim=True) + tiny)
    rows = torch.ones_like(kernel[..., :1])
    for _ in range(steps):
        rows = 1.0 / (s * (columns * kernel).sum(-1, keepdim=True) + tiny)
        columns = 1.0 / (n * (rows * kernel).sum(-2, keepdim=True) + tiny)
    return columns * kernel * rows


def _weights(logits: Tensor, config: MixtureOfExperts) -> Tensor:
    """Weight of every expert before the choice, [b, s, n]: probabilities, or sigmoids for one expert by Sinkhorn."""
    return logits.sigmoid() if config.router == "sinkhorn" and config.top_k == 1 else logits.softmax(-1)


def _of_chosen(weights: Tensor, chosen: Tensor, config: MixtureOfExperts) -> tuple[Tensor, Tensor]:
    weights = weights.gather(-1, chosen)
    return weights / weights.sum(-1, keepdim=True) if config.normalize else weights, chosen


def route(logits: Tensor, config: MixtureOfExperts, training: bool) -> tuple[Tensor, Tensor]:
    """Choose the experts of every token: their weights, like logits [b, s, k], and indices, int64 [b, s, k].

    A token uses the experts with the largest weights. A sinkhorn router in training instead balances each sequence:
    it uses those with the largest entries in `sinkhorn`. Outside of training later tokens are not known. This is
    GPT-NeoX's rule, but there one microbatch is balanced as a whole, so that the result depends on its size.
    """
    weights = _weights(logits, config)
    preferred = sinkhorn(logits.detach()) if config.router == "sinkhorn" and training else weights
    return _of_chosen(weights, preferred.topk(config.top_k, -1).indices, config)


def route_by_position(logits: Tensor, config: MixtureOfExperts, training: bool) -> tuple[Tensor, Tensor]:
    """Like `route`, but position t uses experts t, t + 1, ... modulo their number, whatever the logits are.

    For the coordinate check: a token that changes its expert changes the output at once, at any width. Without such
    jumps the check measures how much routers and experts have learned.
    """
    b, s, n = logits.shape
    position, rank = (torch.arange(size, device=logits.device) for size in (s, config.top_k))
    chosen = (position.unsqueeze(-1) + rank) % n
    return _of_chosen(_weights(logits, config), chosen.expand(b, -1, -1), config)


def balance_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """The balancing loss n * sum_i f_i P_i of each sequence, averaged over the sequences: fp32 []. 1 if balanced.

    f_i: share of expert i among the chosen experts [b, s, k]; P_i: mean of its probability softmax(logits)
    [b, s, n]. [SWITCH] eq. 4 to 6, for k experts per token [DSMOE] eq. 12 to 14. The sum over a sequence instead of
    a microbatch makes the loss independent of microbatches and data-parallel ranks.
    """
    n = logits.shape[-1]
    shares = loads(chosen.flatten(1), n).float() / chosen[0].numel()
    return n * (shares * logits.softmax(-1).mean(1)).sum(-1).mean()


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean of logsumexp(logits)^2 over the tokens: [b, s, n] -> fp32 []. [ST-MOE] eq. 5."""
    return logits.logsumexp(-1).square().mean()


def loads(chosen: Tensor, num_experts: int) -> Tensor:
    """How often each expert occurs: int64 [.., m] -> int64 [.., num_experts]."""
    experts = torch.arange(num_experts, device=chosen.device)
    return (chosen.unsqueeze(-1) == experts).sum(-2)


class Experts(ShardedModule):
    """MLPs without biases, of which every token uses k.

    The matrices of all experts are stacked: dense_h_to_4h [n, ffn, h], or [n, up half then gate half, h], and
    dense_4h_to_h [n, h, ffn]. Tensor parallelism splits ffn within every expert, as in the MLP, so every rank
    computes a part of every expert. A stack has a gradient even if no token chose some of its experts.
    """

    dense_h_to_4h: nn.Parameter
    dense_4h_to_h: nn.Parameter

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        ffn_hidden_size: int,
        activation: Activation,
        tp: TensorParallel = SERIAL,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.activation = gate_or_activate(activation)
        self.tp = tp
        blocks = 2 if activation in GATED_ACTIVATIONS else 1
        first, last = Shard(1, blocks), Shard(2)
        shapes = {
            "dense_h_to_4h": ((num_experts, blocks * ffn_hidden_size, hidden_size), first),
            "dense_4h_to_h": ((num_experts, hidden_size, ffn_hidden_size), last),
        }
        for name, (shape, spec) in shapes.items():
            self.add_sharded(name, nn.Parameter(torch.empty(local_shape(shape, spec, tp.group.size))), spec)
        declare_as(self, "dense_h_to_4h", Declaration(Role.HIDDEN, fan_in_dim=2, fan_out_dim=1))
        declare_as(self, "dense_4h_to_h", Declaration(Role.HIDDEN, "output_matrix", fan_in_dim=2, fan_out_dim=1))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x: [b, s, h], or this rank's slice of s; weights, chosen: [b, s, k] of all positions -> like x."""
        x = self.tp.enter(x)
        order = chosen.flatten().argsort(stable=True)  # [b s k], by expert
        counts = loads(chosen.flatten(), self.num_experts)
        copies = x.unsqueeze(-2).expand(*chosen.shape, x.shape[-1])  # [b, s, k, h]
        y = self._apply_experts(copies.reshape(-1, x.shape[-1])[order], counts)[order.argsort()]
        y = (y.view_as(copies) * weights.unsqueeze(-1).to(y.dtype)).sum(-2)
        return self.tp.leave(y)

    def _apply_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows: [m, h], sorted by expert; counts: rows of each expert -> [m, h], this rank's part of a sum."""
        hidden = self.activation(grouped_linear(rows, self.dense_h_to_4h, counts))
        return grouped_linear(hidden, self.dense_4h_to_h, counts)


class _WithLoss(torch.autograd.Function):
    """The identity, whose backward pass also gives the gradient `scale()` to `loss`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor, scale: Callable[[], float]) -> Tensor:
        ctx.scale, ctx.like = scale, loss
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, torch.full_like(ctx.like, ctx.scale()), None


_with_loss: Callable[[Tensor, Tensor, Callable[[], float]], Tensor] = _WithLoss.apply


class MoE(nn.Module):
    """Router and experts in place of an MLP: [b, s, h] -> [b, s, h], or slices of s under sequence parallelism.

    In training the balancing loss and the z-loss add their gradients to those of the loss of the model, in the
    backward pass of the output. They need no path through the pipeline and are not part of any loss that is reported.
    route: how experts are chosen.
    gradient_scale: the factor between a gradient of the loss and the gradients of a backward pass: 1, or
    loss scale / number of microbatches in an engine.
    """

    def __init__(
        self,
        config: MixtureOfExperts,
        hidden_size: int,
        ffn_hidden_size: int,
        activation: Activation,
        *,
        router_mult: float,
        tp: TensorParallel = SERIAL,
    ) -> None:
        super().__init__()
        self.config = config
        self.tp = tp
        self.router = Router(hidden_size, config.num_experts, mult=router_mult, jitter=config.jitter, tp=tp)
        self.experts = Experts(config.num_experts, hidden_size, ffn_hidden_size, activation, tp)
        self.gradient_scale: Callable[[], float] = _one
        self.route: Callable[[Tensor, MixtureOfExperts, bool], tuple[Tensor, Tensor]] = route
        self._sums: Tensor | None = None  # balancing loss, z-loss and 1, summed over the forward passes in training

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        weights, chosen = self.route(logits, self.config, self.training)
        y: Tensor = self.experts(x, weights, chosen)
        return self._with_losses(y, logits, chosen) if self.training and torch.is_grad_enabled() else y

    def _with_losses(self, y: Tensor, logits: Tensor, chosen: Tensor) -> Tensor:
        balance, z = balance_loss(logits, chosen), router_z_loss(logits)
        with torch.no_grad():
            now = torch.stack((balance, z, torch.ones_like(z)))
            self._sums = now if self._sums is None else self._sums + now
        if not (self.config.balance_coeff or self.config.z_coeff):
            return y
        loss = self.config.balance_coeff * balance + self.config.z_coeff * z
        # every rank of the tensor-parallel region adds a gradient of the logits
        return _with_loss(y, loss / self.tp.group.size, self.gradient_scale)

    def take_losses(self) -> Tensor:
        """Means of the balancing loss and of the z-loss over the training passes since the last call: fp32 [2].

        Raises RuntimeError if there was none.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            raise RuntimeError("the layer has not run in training since its losses were taken")
        return sums[:2] / sums[2]


def _one() -> float:
    return 1.0


def expert_layers(model: nn.Module) -> list[MoE]:
    """The layers with experts of a model, or of a pipeline stage."""
    return [module for module in model.modules() if isinstance(module, MoE)]
