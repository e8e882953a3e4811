"""The keys of mixtures of experts: what they resolve to, and which combinations are refused with the cause."""

from __future__ import annotations

import pytest

from megatron.architecture import MixtureOfExperts
from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import model_config


def experts_of(config):
    return model_config(NeoXArgs.from_dict(config)).architecture.experts


def test_the_keys_reach_the_model(small):
    assert experts_of(small) is None
    assert experts_of({**small, "moe_num_experts": 8}) == MixtureOfExperts(num_experts=8)
    keys = {
        "moe_num_experts": 8, "moe_top_k": 2, "moe_expert_interval": 3, "moe_router_type": "topk",
        "moe_normalize_expert_weights": True, "moe_jitter_eps": 0.1, "moe_aux_loss_coeff": 0.2, "moe_z_loss_coeff": 0.3,
    }  # fmt: skip
    expected = MixtureOfExperts(
        num_experts=8, top_k=2, interval=3, router="topk", normalize=True, jitter=0.1, balance_coeff=0.2, z_coeff=0.3
    )
    assert experts_of({**small, **keys}) == expected


def test_the_former_name_of_the_coefficient_works_and_fp32_is_noted(small):
    keys = {"moe_num_experts": 8, "moe_router_type": "topk", "moe_loss_coeff": 0.1, "moe_lbl_in_fp32": True}
    args = NeoXArgs.from_dict({**small, **keys})
    assert args.moe_aux_loss_coeff == 0.1
    assert [notice for notice in args.notices() if notice.startswith("moe_lbl_in_fp32")]


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"moe_top_k": 2}, "moe_top_k: has no effect without experts; set moe_num_experts to at least 2"),
        ({"moe_num_experts": 4, "moe_top_k": 5}, "moe_top_k: 5 is greater than moe_num_experts 4; use at most 4"),
        (
            {"moe_num_experts": 4, "moe_normalize_expert_weights": True},
            "moe_normalize_expert_weights: the weight of a single expert is then always 1",
        ),
        (
            {"moe_num_experts": 4, "moe_aux_loss_coeff": 0.1},
            "moe_aux_loss_coeff: a sinkhorn router balances the experts itself",
        ),
        ({"moe_num_experts": 4, "moe_jitter_eps": 0.1}, "moe_jitter_eps: a sinkhorn router has no jitter"),
        ({"moe_num_experts": 4, "moe_router_type": "hash"}, "moe_router_type: expected sinkhorn or topk"),
        ({"moe_train_capacity_factor": 2.0}, "unknown key 'moe_train_capacity_factor': no token is dropped"),
        ({"moe_expert_parallel_size": 2}, "unknown key 'moe_expert_parallel_size': model_parallel_size splits every"),
    ],
)
def test_a_combination_without_effect_is_refused_with_the_cause(small, keys, cause):
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict({**small, **keys})
    [line] = str(error.value).splitlines()
    assert cause in line.removeprefix("configuration: ")


def test_tensor_parallelism_splits_the_width_of_every_expert(small):
    keys = {"moe_num_experts": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 66}
    with pytest.raises(ConfigError, match="model_parallel_size: 4 does not divide the inner width of the MLP"):
        NeoXArgs.from_dict({**small, **keys, "model_parallel_size": 4})
