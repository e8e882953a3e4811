"""Keys of preference training and mixtures of experts, which are not supported yet."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron.neox_arguments.keys import refused

_PRETRAIN = "only pretraining is supported (no DPO, KTO, reward models or reinforcement learning); remove the key"
_NO_MOE = "mixtures of experts are not supported yet; remove the key"


@dataclass(frozen=True, kw_only=True)
class NeoXArgsPosttraining:
    """Preference training: labels, preferences and rewards."""

    train_label_data_paths: list[Any] | None = refused(None, "Labels of the training data.", _PRETRAIN)
    train_reward_data_paths: list[Any] | None = refused(None, "Rewards of the training data.", _PRETRAIN)
    test_label_data_paths: list[Any] | None = refused(None, "Labels of the test data.", _PRETRAIN)
    test_reward_data_paths: list[Any] | None = refused(None, "Rewards of the test data.", _PRETRAIN)
    valid_label_data_paths: list[Any] | None = refused(None, "Labels of the validation data.", _PRETRAIN)
    valid_reward_data_paths: list[Any] | None = refused(None, "Rewards of the validation data.", _PRETRAIN)
    pos_train_data_paths: list[Any] | None = refused(None, "Preferred training texts.", _PRETRAIN)
    neg_train_data_paths: list[Any] | None = refused(None, "Rejected training texts.", _PRETRAIN)
    pos_train_label_data_paths: list[Any] | None = refused(None, "Labels of preferred training texts.", _PRETRAIN)
    neg_train_label_data_paths: list[Any] | None = refused(None, "Labels of rejected training texts.", _PRETRAIN)
    pos_valid_data_paths: list[Any] | None = refused(None, "Preferred validation texts.", _PRETRAIN)
    neg_valid_data_paths: list[Any] | None = refused(None, "Rejected validation texts.", _PRETRAIN)
    pos_valid_label_data_paths: list[Any] | None = refused(None, "Labels of preferred validation texts.", _PRETRAIN)
    neg_valid_label_data_paths: list[Any] | None = refused(None, "Labels of rejected validation texts.", _PRETRAIN)
    pos_test_data_paths: list[Any] | None = refused(None, "Preferred test texts.", _PRETRAIN)
    neg_test_data_paths: list[Any] | None = refused(None, "Rejected test texts.", _PRETRAIN)
    pos_test_label_data_paths: list[Any] | None = refused(None, "Labels of preferred test texts.", _PRETRAIN)
    neg_test_label_data_paths: list[Any] | None = refused(None, "Labels of rejected test texts.", _PRETRAIN)
    pack_impl: Literal["packed", "pack_until_overflow", "unpacked"] = refused(
        "packed", "How documents are packed into samples.", "documents are packed end to end; use packed"
    )
    dataset_impl: Literal["gpt2", "pairwise", "online"] = refused(
        "gpt2", "Type of the dataset.", "only the packed token dataset is supported; use gpt2"
    )
    train_impl: Literal["normal", "dpo", "rm", "kto", "reinforce"] = refused("normal", "Training objective.", _PRETRAIN)
    dpo_fp32: bool = refused(True, "Compute DPO in fp32.", _PRETRAIN)
    dpo_reference_free: bool = refused(False, "Use DPO without a reference model.", _PRETRAIN)
    dpo_beta: float = refused(0.1, "Beta of DPO.", _PRETRAIN)
    kto_fp32: bool = refused(True, "Compute KTO in fp32.", _PRETRAIN)
    kto_desirable_weight: float = refused(1.0, "Weight of desirable texts in KTO.", _PRETRAIN)
    kto_undesirable_weight: float = refused(1.0, "Weight of undesirable texts in KTO.", _PRETRAIN)
    kto_beta: float = refused(0.1, "Beta of KTO.", _PRETRAIN)
    fp32_reinforce: bool = refused(True, "Compute REINFORCE in fp32.", _PRETRAIN)
    kl_impl: Literal["abs", "mse", "kl", "full"] = refused("mse", "Divergence penalty of REINFORCE.", _PRETRAIN)
    kl_div_beta: float = refused(0.1, "Weight of the divergence penalty.", _PRETRAIN)
    reinforce_leave_one_out: bool = refused(False, "Use the leave-one-out baseline of REINFORCE.", _PRETRAIN)
    allow_chopped: bool = refused(
        True,
        "Allow a sample to begin or end inside a document.",
        "documents are packed end to end; remove the key",
    )


@dataclass(frozen=True, kw_only=True)
class NeoXArgsMoE:
    """Mixtures of experts."""

    moe_num_experts: int = refused(1, "Number of experts per expert layer.", _NO_MOE)
    moe_expert_interval: int = refused(1, "Number of layers between expert layers.", _NO_MOE)
    moe_top_k: int = refused(1, "Number of experts per token.", _NO_MOE)
    moe_router_type: Literal["sinkhorn", "topk"] = refused("sinkhorn", "Type of the router.", _NO_MOE)
    moe_lbl_in_fp32: bool = refused(False, "Compute the load-balancing loss in fp32.", _NO_MOE)
    moe_jitter_eps: float | None = refused(None, "Noise added to the router's input.", _NO_MOE)
