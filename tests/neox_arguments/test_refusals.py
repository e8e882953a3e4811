"""A refused configuration names the cause first, in one sentence for all keys that belong together."""

import pytest

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import ALIASES, FIELDS, KEYS
from megatron.neox_arguments.foreign import FOREIGN, HUGGING_FACE, NANO_GPT, NOTES, PAPERS
from megatron.neox_arguments.former import GONE


def refused(config):
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict(config)
    return [line.removeprefix("configuration: ") for line in str(error.value).splitlines()]


# Configurations in the style of GPT-NeoX's, with further problems that follow from the feature or hide behind it.
MAMBA = {
    "num_attention_heads": 5,
    "mamba_selective_scan_fusion": True,
    "attention_config": [[["mamba"], 2]],
    "mamba_causal_conv_fusion": True,
}
DPO = {
    "allow_chopped": False,
    "dpo_beta": 0.01,
    "pos_train_data_paths": ["a"],
    "neg_train_data_paths": ["b"],
    "dataset_impl": "pairwise",
    "dpo_fp32": False,
    "train_impl": "dpo",
}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (MAMBA, "attention_config: Mamba layers are not supported"),
        (
            {"bf16": {"enabled": True, "loss_scale": 0}, "attention_config": [[["rwkv"], 2]]},
            "attention_config: RWKV layers are not supported",
        ),
        ({"attention_config": [[["gmlp", "amlp"], 1]]}, "attention_config: gMLP layers are not supported"),
        (
            {"sparsity_config": {"block": 16}, "attention_config": [[["local", "global"], "all"]]},
            "attention_config: sparse attention is not supported",
        ),
        (DPO, "train_impl: preference training and reinforcement learning"),
        ({"te_layernorm_mlp": True, "te_mha": True}, "te_layernorm_mlp: Transformer Engine is not supported"),
        ({"use_bnb_optimizer": True}, "use_bnb_optimizer: the 8-bit Adam of bitsandbytes is not supported"),
        ({"autotuning": {"enabled": True}}, "autotuning: DeepSpeed's autotuning is not supported"),
    ],
)
def test_an_unsupported_feature_is_one_line_that_starts_with_the_cause(small, keys, says):
    (line,) = refused({**small, **keys})
    assert line.startswith(says)


def test_the_line_names_three_other_keys_and_counts_the_rest(small):
    (line,) = refused({**small, **DPO})
    assert line.endswith("(the same applies to dpo_beta, pos_train_data_paths, neg_train_data_paths and 2 more)")


def test_problems_of_other_keys_are_listed_unless_the_run_is_another_one(small):
    lines = refused({**small, "use_bnb_optimizer": True, "warmup": 2})
    assert [line.split(":")[0] for line in lines] == ["use_bnb_optimizer", "warmup"]
    assert len(refused({**small, **MAMBA, "warmup": 2})) == 1


# Keys that change the trained model or data: without them the run is another one.
@pytest.mark.parametrize(
    "keys",
    [
        {"num_unique_layers": 1},
        {"param_sharing_style": "spaced"},
        {"soft_prompt_tuning": {"enabled": True}},
        {"curriculum_learning": {"enabled": True}},
        {"data_efficiency": {"enabled": True}},
        {"compression_training": {"weight_quantization": {}}},
        MAMBA,
        DPO,
    ],
)
def test_removing_a_key_is_not_advised_where_that_trains_another_model(small, keys):
    assert not [line for line in refused({**small, **keys}) if "remove the key" in line]


# Every key that GPT-NeoX's classes had at some commit and have no more, and those that only its files had.
FORMER = """
apply_residual_connection_post_layernorm create_moe_param_group detect_nvlink_pairs enable_expert_tensor_parallelism
expert_interval gas geglu genfile gptj_residual greedy label_data_paths max_tokens mlp_type moe_eval_capacity_factor
moe_expert_parallel_size moe_glu moe_loss_coeff moe_min_capacity moe_token_dropping moe_train_capacity_factor moe_type
moe_use_residual num_experts openai_gelu out_seq_length reset_attention_mask reset_position_ids save_interval save_iters
slurm_comment sparsity test_data_path train_data_path use_tutel valid_data_path zero_allow_untested_optimizer
attention_type autotuning_config decay_lr_to warmup_iters
""".split()


@pytest.mark.parametrize("name", FORMER)
def test_a_former_key_works_or_has_a_hint(name):
    assert (name in GONE) != (name in ALIASES) and name not in FIELDS
    if name in GONE:
        assert refused({name: 1}) == [f"unknown key {name!r}: {GONE[name]}"]


def test_a_hint_names_a_key_that_exists():
    for name, hint in GONE.items():
        if hint.startswith("use "):
            key = hint.removeprefix("use ").split(" ")[0].strip(",:;")
            assert key in KEYS, name


# A block from the guide to muP, which ends its entries with commas, in a file without braces.
@pytest.mark.parametrize(
    ("pasted", "line"),
    [
        ('"use-mup": true,\n\n"mup-init-scale": 1.0,\n', 2),
        ('"use-mup": true, # a comment\n', 2),
        ('# mup\n"base-shapes-file": "base-shapes", # a comment\n', 3),
    ],
)
def test_a_block_with_commas_in_a_file_without_braces(write, pasted, line):
    path = write(f"seed: 1\n{pasted}")
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([path])
    text = str(error.value)
    assert text.startswith(f"{path}:{line}: a comma follows the value") and "braces {} around all of them" in text
    assert len(text.splitlines()) == 1


def test_the_same_block_works_in_braces_and_without_commas(write):
    block = '"use-mup": true,\n"mup-base-hidden-size": 64, # a comment\n'
    braces = NeoXArgs.from_ymls([write("{\n" + block + "}\n", "a.yml")])
    lines = NeoXArgs.from_ymls([write(block.replace(",", ""), "b.yml")])
    assert braces == lines and braces.use_mup


def test_a_comma_inside_a_value_is_no_entry_of_a_block(write):
    assert NeoXArgs.from_ymls([write('split: 969, 30, 1\nwandb-group: "a,"\n')]).wandb_group == "a,"


# --- keys of other trainers ---


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "it is called 'lr' here"),
        ("n_layer", "it is called 'num-layers' here"),
        ("d_model", "it is called 'hidden-size' here"),
        ("num_hidden_layers", "it is called 'num-layers' here"),
        ("warmup-steps", r"it is called 'warmup' here \(a fraction of lr_decay_iters\)"),
        ("tie_word_embeddings", r"it is called 'no-weight-tying' here \(with the opposite value\)"),
        ("adam_beta2", r"it is called 'optimizer.params.betas' here \(a list of two\)"),
    ],
)
def test_a_key_of_another_trainer_is_recognised(key, hint):
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; {hint}$"):
        NeoXArgs.from_dict({key: 1})


def test_keys_of_other_trainers_are_unknown_and_their_names_here_are_keys():
    assert {name.split(".")[0] for name in FOREIGN.values()} <= KEYS.keys()
    assert FOREIGN.keys().isdisjoint([*KEYS, *ALIASES, *GONE])
    assert NOTES.keys() <= FOREIGN.keys()
    assert len(FOREIGN) == len(NANO_GPT) + len(HUGGING_FACE) + len(PAPERS)
