"""Plan a model from a GPTConfig and a parametrization, without weights, and build a plan with its initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megatron.architecture import Widths
from megatron.model.config import GPTConfig
from megatron.model.gpt import GPT
from megatron.mpu import SERIAL, TensorParallel
from megatron.parametrization.init import initialise
from megatron.parametrization.plan import Declared, Parametrization, Shape
from megatron.parametrization.widths import ForwardFactors, forward_factors
from mup.plan import ParameterPlan
from mup.roles import declarations


@dataclass(frozen=True)
class ModelPlan:
    """Plan of a model: everything that is known before its weights exist."""

    config: GPTConfig
    parametrization: Parametrization
    factors: ForwardFactors
    parameters: Mapping[str, ParameterPlan]

    @property
    def num_parameters(self) -> int:
        """Number of parameters, without vocabulary padding. A tied readout counts once."""
        return sum(torch.Size(plan.shape).numel() for plan in self.parameters.values())

    @property
    def num_active_parameters(self) -> int:
        """Number of parameters that one token uses: of the experts of a block only `top_k`."""
        experts = self.config.experts
        unused = 0 if experts is None else experts.num_experts - experts.top_k
        stacks = (torch.Size(plan.shape) for plan in self.parameters.values() if ".experts." in plan.name)
        return self.num_parameters - sum(unused * shape[1:].numel() for shape in stacks)

    @property
    def num_non_embedding_parameters(self) -> int:
        """Number of parameters without token embedding, position embedding and untied readout."""
        outside = ("embedding.", "readout.")
        kept = (plan for plan in self.parameters.values() if not plan.name.startswith(outside))
        return sum(torch.Size(plan.shape).numel() for plan in kept)


def forward_section(plan: ModelPlan) -> dict[str, dict[str, Any]]:
    """Settings of the forward pass in addition to the weights, as plain data: base dimensions, multipliers, factors."""
    sections = {
        "base": dataclasses.asdict(plan.parametrization.base),
        "multipliers": dataclasses.asdict(plan.parametrization.multipliers),
        "factors": dataclasses.asdict(plan.factors),
    }
    if plan.config.pos_emb != "rpe":
        del sections["multipliers"]["rp_embedding_mult"], sections["factors"]["positions"]
    if plan.config.norm != "scalenorm":
        del sections["factors"]["norm"], sections["factors"]["head_norm"]
    return sections


def meta_model(config: GPTConfig, factors: ForwardFactors, tp: TensorParallel = SERIAL) -> GPT:
    """Build the model, or a tensor-parallel rank's part of it, on the meta device: shapes and declarations only."""
    with torch.device("meta"):
        return GPT(config, factors, tp)


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Shapes of the parameters by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def shapes_at(config: GPTConfig, widths: Widths, factors: ForwardFactors) -> dict[str, Shape]:
    """Shapes of the same model, unpadded, with other widths."""
    return shapes_of(meta_model(config.without_padding().with_widths(widths), factors))


def _declared_at(config: GPTConfig, widths: Widths, factors: ForwardFactors) -> Declared:
    """Shapes and declarations of the same model, unpadded, with other widths."""
    model = meta_model(config.without_padding().with_widths(widths), factors)
    declared = declarations(model)
    return {name: (shape, declared[name]) for name, shape in shapes_of(model).items()}


def plan_model(config: GPTConfig, parametrization: Parametrization) -> ModelPlan:
    """Plan every parameter from its global shape and the shape that it has in the base model."""
    factors = forward_factors(
        parametrization.widths, parametrization.base, parametrization.options, parametrization.multipliers
    )
    # the base gets as many layers as the model, so that every layer has a counterpart
    deep_base = dataclasses.replace(parametrization.base, num_layers=config.widths.num_layers)
    model, base = (_declared_at(config, widths, factors) for widths in (config.widths, deep_base))
    return ModelPlan(config, parametrization, factors, parametrization.plan(model, base))


def materialise(plan: ModelPlan, seed: int, device: torch.device | str = "cpu", tp: TensorParallel = SERIAL) -> GPT:
    """Build the model, or a tensor-parallel rank's part of it, with initial weights in fp32 on `device`.

    The weights depend only on the seed and on the names of the parameters.
    """
    model = meta_model(plan.config, plan.factors, tp)
    model.to_empty(device=device)
    initialise(model.named_parameters(), plan.parameters, seed, tp.group)
    return model
