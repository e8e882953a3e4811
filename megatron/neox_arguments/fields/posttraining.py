"""Keys of fine-tuning: labels and packing. Preference training is not supported."""

from dataclasses import dataclass
from typing import Any, Literal

from megatron.neox_arguments.keys import refused, supported
from megatron.neox_arguments.limits import Items
from megatron.neox_arguments.transfer import DATA


@dataclass(kw_only=True)
class NeoXArgsPosttraining:
    """Fine-tuning: labels, packing, preferences and rewards."""

    train_label_data_paths: list[Any] | None = supported(
        None,
        "Prefixes of the labels of train_data_paths. Tokens with a negative label do not count in the loss.",
        limit=Items(str),
        transfer=DATA,
    )
    train_reward_data_paths: list[Any] | None = refused(None, "Rewards of the training data.", feature="preferences")
    test_label_data_paths: list[Any] | None = supported(
        None, "Prefixes of the labels of test_data_paths.", limit=Items(str), transfer=DATA
    )
    test_reward_data_paths: list[Any] | None = refused(None, "Rewards of the test data.", feature="preferences")
    valid_label_data_paths: list[Any] | None = supported(
        None, "Prefixes of the labels of valid_data_paths.", limit=Items(str), transfer=DATA
    )
    valid_reward_data_paths: list[Any] | None = refused(None, "Rewards of the validation data.", feature="preferences")
    pos_train_data_paths: list[Any] | None = refused(None, "Preferred training texts.", feature="preferences")
    neg_train_data_paths: list[Any] | None = refused(None, "Rejected training texts.", feature="preferences")
    pos_train_label_data_paths: list[Any] | None = refused(
        None, "Labels of preferred training texts.", feature="preferences"
    )
    neg_train_label_data_paths: list[Any] | None = refused(
        None, "Labels of rejected training texts.", feature="preferences"
    )
    pos_valid_data_paths: list[Any] | None = refused(None, "Preferred validation texts.", feature="preferences")
    neg_valid_data_paths: list[Any] | None = refused(None, "Rejected validation texts.", feature="preferences")
    pos_valid_label_data_paths: list[Any] | None = refused(
        None, "Labels of preferred validation texts.", feature="preferences"
    )
    neg_valid_label_data_paths: list[Any] | None = refused(
        None, "Labels of rejected validation texts.", feature="preferences"
    )
    pos_test_data_paths: list[Any] | None = refused(None, "Preferred test texts.", feature="preferences")
    neg_test_data_paths: list[Any] | None = refused(None, "Rejected test texts.", feature="preferences")
    pos_test_label_data_paths: list[Any] | None = refused(
        None, "Labels of preferred test texts.", feature="preferences"
    )
    neg_test_label_data_paths: list[Any] | None = refused(None, "Labels of rejected test texts.", feature="preferences")
    pack_impl: Literal["packed", "pack_until_overflow", "unpacked"] = supported(
        "packed",
        "How documents fill samples: joined and cut (packed), as many whole documents as fit (pack_until_overflow),"
        " or one document per sample (unpacked).",
        transfer=DATA,
    )
    dataset_impl: Literal["gpt2", "pairwise", "online"] = refused("gpt2", "Type of the dataset.", feature="preferences")
    train_impl: Literal["normal", "dpo", "rm", "kto", "reinforce"] = refused(
        "normal", "Training objective.", feature="preferences"
    )
    dpo_fp32: bool = refused(True, "Compute DPO in fp32.", feature="preferences")
    dpo_reference_free: bool = refused(False, "Use DPO without a reference model.", feature="preferences")
    dpo_beta: float = refused(0.1, "Beta of DPO.", feature="preferences")
    kto_fp32: bool = refused(True, "Compute KTO in fp32.", feature="preferences")
    kto_desirable_weight: float = refused(1.0, "Weight of desirable texts in KTO.", feature="preferences")
    kto_undesirable_weight: float = refused(1.0, "Weight of undesirable texts in KTO.", feature="preferences")
    kto_beta: float = refused(0.1, "Beta of KTO.", feature="preferences")
    fp32_reinforce: bool = refused(True, "Compute REINFORCE in fp32.", feature="preferences")
    kl_impl: Literal["abs", "mse", "kl", "full"] = refused(
        "mse", "Divergence penalty of REINFORCE.", feature="preferences"
    )
    kl_div_beta: float = refused(0.1, "Weight of the divergence penalty.", feature="preferences")
    reinforce_leave_one_out: bool = refused(
        False, "Use the leave-one-out baseline of REINFORCE.", feature="preferences"
    )
    allow_chopped: bool = supported(
        True,
        "With pack_impl pack_until_overflow or unpacked: cut off documents of more than seq_length + 1 tokens. If"
        " false, they are left out.",
        transfer=DATA,
    )
