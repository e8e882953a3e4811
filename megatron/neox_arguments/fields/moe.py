"""Keys of mixtures of experts: those of GPT-NeoX, and additional ones."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.keys import satisfied, supported
from megatron.neox_arguments.limits import Range, at_least
from megatron.neox_arguments.transfer import FAMILY, LADDER, MUP_FAMILY, TUNED


@dataclass(kw_only=True)
class NeoXArgsMoE:
    """Mixtures of experts. Experts replace the MLP, have its width and no biases, and drop no tokens."""

    moe_num_experts: int = supported(
        1,
        "Number of experts per layer with experts. 1: no experts.",
        limit=at_least(1),
        recipe=(FAMILY, LADDER),
    )
    moe_expert_interval: int = supported(
        1,
        "Experts are in every layer whose index, counted from 0, is a multiple of this value. Other layers have an"
        " MLP.",
        limit=at_least(1),
        recipe=(FAMILY, LADDER),
    )
    moe_top_k: int = supported(1, "Number of experts that each token uses.", limit=at_least(1), recipe=(FAMILY, LADDER))
    moe_router_type: Literal["sinkhorn", "topk"] = supported(
        "sinkhorn",
        "How a token's experts are chosen. topk: the most probable ones. sinkhorn: in training, by balancing each"
        " sequence over the experts; otherwise as topk.",
        recipe=(FAMILY, LADDER),
    )
    moe_lbl_in_fp32: bool = satisfied(
        False, "Compute the load-balancing loss in fp32.", "the load-balancing loss is always computed in fp32"
    )
    moe_jitter_eps: float | None = supported(
        None,
        "In training, multiply the input of a topk router by random numbers from 1 - eps to 1 + eps.",
        limit=Range(0, 1),
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    # These keys are not in GPT-NeoX.
    moe_normalize_expert_weights: bool = supported(
        False, "Divide the weights of a token's experts by their sum, as Mixtral does.", recipe=(FAMILY, LADDER)
    )
    moe_aux_loss_coeff: float = supported(
        0.0,
        "Weight of the load-balancing loss of a topk router, per layer. The loss of each sequence is 1 if balanced.",
        limit=at_least(0),
        aliases=("moe_loss_coeff",),
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
    moe_z_loss_coeff: float = supported(
        0.0,
        "Weight of the z-loss of the router, logsumexp(logits)^2, per layer.",
        limit=at_least(0),
        transfer=TUNED,
        recipe=(MUP_FAMILY,),
    )
