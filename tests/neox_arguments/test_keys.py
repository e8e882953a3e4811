"""Every key of GPT-NeoX is declared with its type, its default and one status."""

import ast
import csv
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import GROUPS, KEYS
from megatron.neox_arguments.keys import REFUSED, SATISFIED, SUPPORTED

FIELDS = NeoXArgs.__dataclass_fields__
NEOX = list(csv.DictReader((Path(__file__).parent / "gpt_neox_keys.csv").open(encoding="utf-8")))
OURS = {
    "mup_base_hidden_size", "mup_base_num_attention_heads", "mup_base_num_kv_heads",
    "mup_base_intermediate_size", "mup_base_num_layers", "mup_depth_alpha", "mup_readout_zero_init",
    "mup_query_zero_init", "mup_weight_decay_mode", "mup_eps_scaling", "coord_check_widths",
    "coord_check_seeds", "coord_check_lr", "warmup_style", "dry_run", "dry_run_gpu",
    "lr_cooldown_fraction", "lr_cooldown_style",
    "moe_normalize_expert_weights", "moe_aux_loss_coeff", "moe_z_loss_coeff",
    "rope_scaling", "wandb_mode", "torch_autocast", "torch_compile", "optimizer_implementation", "override_data",
    "eval_num_fewshot", "eval_limit",
    "nonfinite_policy", "nonfinite_limit", "loss_spike_policy", "loss_spike_threshold", "loss_spike_window",
    "deterministic", "check_determinism", "override_optimizer", "async_save", "export_variables",
    "distributed_timeout_minutes",
}  # fmt: skip
# Intended differences from GPT-NeoX: key -> reason.
OTHER_TYPE = {
    "optimizer_type": "adamw is a separate name",
    "lr_decay_style": "wsd is additional",
    "launcher": "mpich is additional",
    "activation": "gelu_tanh is additional",
    "communication_data_type": "DeepSpeed expects a name such as fp32 instead of a bool",
}
OTHER_DEFAULT = {
    "gradient_accumulation_steps": "unset, to derive it from the other two batch sizes",
    "git_hash": "reading a configuration does not run git",
    "temperature": "generate.py samples unless 0 is asked for",
    "top_k": "the same",
}


def plain(annotation: Any) -> Any:
    """Return a comparable form of a type, without None."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return frozenset(("literal", part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        kept = [plain(part) for part in parts if part is not types.NoneType]
        return kept[0] if len(kept) == 1 else frozenset(kept)
    if origin is list and parts[0] is not Any:
        return ("list", plain(parts[0]))
    if origin in (list, dict):
        return origin
    return annotation


def neox_type(text: str) -> Any:
    names = {"List": list, "Any": Any, "Literal": Literal, "Union": typing.Union, "Optional": typing.Optional}
    return plain(eval(text, names))


@pytest.mark.parametrize("row", NEOX, ids=[row["key"] for row in NEOX])
def test_gpt_neox_key_is_known_with_its_type_and_default(row):
    field = FIELDS[row["key"]]
    if row["key"] not in OTHER_TYPE:
        assert plain(field.type) == neox_type(row["type"])
    if row["key"] not in OTHER_DEFAULT:
        assert field.default == ast.literal_eval(row["default"])


def test_all_other_keys_are_listed():
    assert set(FIELDS) - {row["key"] for row in NEOX} == OURS


def test_no_key_is_declared_twice():
    names = [name for group in GROUPS for name in group.__dataclass_fields__]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", FIELDS)
def test_status_and_description(name):
    key = KEYS[name]
    assert key.status in (SUPPORTED, SATISFIED, REFUSED)
    assert key.doc.strip() and len(key.doc) < 230
    assert bool(key.reason) == (key.status == REFUSED)
    assert bool(key.notice) == (key.status == SATISFIED)


def another_value(field):
    """Return a value of the field's type that is neither its default nor neutral."""
    kind = plain(field.type)
    samples = {bool: [True, False], int: [3], float: [0.3], str: ["other"]}
    samples |= {dict: [{"enabled": True}], list: [["x"]]}
    candidates = []
    for part in kind if isinstance(kind, frozenset) else [kind]:
        if isinstance(part, tuple) and part[0] == "literal":
            candidates.append(part[1])
        elif not isinstance(part, tuple):
            candidates += samples.get(part, ["other"])
    for value in candidates:
        if value != field.default and value not in KEYS[field.name].neutral:
            return value
    raise AssertionError(f"no other value for {field.name}")


@pytest.mark.parametrize("name", [n for n, key in KEYS.items() if key.status == REFUSED])
def test_refused_key_gives_the_reason(name):
    field = FIELDS[name]
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict({name: another_value(field)})
    assert str(error.value).startswith(f"configuration: {name}: {KEYS[name].reason}")
    NeoXArgs.from_dict({name: field.default})
    for neutral in KEYS[name].neutral:
        NeoXArgs.from_dict({name: neutral})


REFUSED_VALUES = [(name, value) for name, key in KEYS.items() for value in key.refuse]


@pytest.mark.parametrize(("name", "value"), REFUSED_VALUES)
def test_refused_value_gives_the_reason(name, value):
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_dict({name: value})
    assert str(error.value).startswith(f"configuration: {name}: {KEYS[name].refuse[value]} (got the string '{value}')")


def test_notices_name_the_satisfied_hints_that_are_set(small):
    assert NeoXArgs.from_dict(small).notices() == []
    hints = {"scaled_upper_triang_masked_softmax_fusion": True, "attention_config": [[["flash"], 2]]}
    notices = NeoXArgs.from_dict({**small, **hints}).notices()
    assert [notice.split(":")[0] for notice in notices] == list(hints)[::-1]
