"""Every key rejects values of the wrong type or out of range, with one error that names the key."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import FIELDS, KEYS, section_fields
from megatron.neox_arguments.keys import REFUSED, SUPPORTED, key_of
from megatron.neox_arguments.limits import Items, OneOf, Pattern, Range, above, at_least, one_of
from megatron.neox_arguments.messages import kinds

few = settings(suppress_health_check=list(HealthCheck), max_examples=6, deadline=None)


def lines(config):
    """Return the lines of the error for `config`, or an empty list if it is accepted."""
    try:
        NeoXArgs.from_dict(config)
    except ConfigError as error:
        return [line.removeprefix("configuration: ") for line in str(error).splitlines()]
    return []


# Written by hand from the documentation of GPT-NeoX and DeepSpeed and from the papers: values just inside and just
# outside the limit, and the text of the message.
LIMITS = {
    "num_layers": ([1, 96], [0, -1], "a number of at least 1"),
    "hidden_size": ([1, 12288], [0], "a number of at least 1"),
    "num_attention_heads": ([1], [0, -4], "a number of at least 1"),
    "num_kv_heads": ([1], [0], "a number of at least 1"),
    "seq_length": ([1], [0], "a number of at least 1"),
    "make_vocab_size_divisible_by": ([1, 128], [0], "a number of at least 1"),
    "rotary_pct": ([0, 0.25, 1], [-0.01, 1.01], "a number from 0 to 1"),
    "layernorm_epsilon": ([1e-12], [0, -1e-5], "a number above 0"),
    "init_method_std": ([0, 0.02], [-0.02], "a number of at least 0"),
    "hidden_dropout": ([0, 0.99], [1, -0.1], "a number from 0 to below 1"),
    "attention_dropout": ([0, 0.5], [1, 1.5], "a number from 0 to below 1"),
    "lr": ([0, 1e-9, 3], [-1e-9], "a number of at least 0"),
    "min_lr": ([0], [-1], "a number of at least 0"),
    "warmup": ([0, 0.01, 1], [-0.1, 1.001], "a number from 0 to 1"),
    "lr_decay_iters": ([1], [0], "a number of at least 1"),
    "lr_decay_fraction": ([0, 1], [1.1], "a number from 0 to 1"),
    "lr_cooldown_fraction": ([0, 0.2, 1], [-0.2, 2], "a number from 0 to 1"),
    "weight_decay": ([0, 0.1], [-0.1], "a number of at least 0"),
    "gradient_clipping": ([0, 1], [-1], "a number of at least 0"),
    "train_iters": ([0, 1], [-1], "a number of at least 0"),
    "train_batch_size": ([1], [0], "a number of at least 1"),
    "train_micro_batch_size_per_gpu": ([1], [0], "a number of at least 1"),
    "gradient_accumulation_steps": ([1], [0], "a number of at least 1"),
    "eval_iters": ([0], [-1], "a number of at least 0"),
    "eval_interval": ([1], [0], "a number of at least 1"),
    "seed": ([0, 1234], [-1], "a number of at least 0"),
    "zero_stage": ([0, 1, 2, 3], [-1, 4, [1]], "0, 1, 2 or 3"),
    "model_parallel_size": ([1], [0], "a number of at least 1"),
    "pipe_parallel_size": ([0, 1], [-1], "a number of at least 0"),
    "pipe_partition_method": (
        ["uniform", "parameters", "type:transformer"],
        ["type:", "best", "Uniform"],
        "uniform, parameters or",
    ),
    "master_addr": (
        ["10.0.0.1", "node-1.cluster", "fe80::1%eth0", "::1"],
        ["$(touch x)127.0.0.1", "a b", "a;b", "-oProxyCommand=x", "`x`", "a\n", ""],
        "a host name or an IP address",
    ),
    "include": (
        ["a", "a:0", "a@b:0,2", ""],
        ["$(x)", "a:x", "a@", "a b", "a:0;b"],
        "hosts, each with its slots where not all are meant, such as a@b:0,2",
    ),
    "exclude": (
        ["b:1"],
        ["b:", "`x`@b"],
        "hosts, each with its slots where not all are meant, such as a@b:0,2",
    ),
    "master_port": ([1, 29500, 65535], [0, 65536], "a number from 1 to 65535"),
    "num_nodes": ([-1, 0, 1], [-2], "a number of at least -1"),
    "moe_num_experts": ([1, 8], [0, -1], "a number of at least 1"),
    "moe_top_k": ([1, 4], [0], "a number of at least 1"),
    "moe_jitter_eps": ([0, 0.01, 1], [-0.1, 1.1], "a number from 0 to 1"),
    "moe_aux_loss_coeff": ([0, 0.01], [-0.1], "a number of at least 0"),
    "mup_base_hidden_size": ([1], [0], "a number of at least 1"),
    "mup_init_scale": ([1e-6, 1], [0, -1], "a number above 0"),
    "mup_attn_temp": ([1], [0], "a number above 0"),
    "mup_output_temp": ([1], [0], "a number above 0"),
    "mup_embedding_mult": ([1, 10], [0], "a number above 0"),
    "mup_depth_alpha": ([0, 0.5, 1], [0.25, 2, -0.5], "0, 0.5 or 1"),
    "mup_width_scale": ([2], [1], "a number of at least 2"),
    "temperature": ([0, 1.5], [-0.1], "a number of at least 0"),
    "top_p": ([0, 0.9, 1], [1.1], "a number from 0 to 1"),
    "top_k": ([0, 40], [-1], "a number of at least 0"),
    "text_gen_type": (["input-file", "interactive"], ["poem"], "unconditional, input-file or interactive"),
    "extra_save_iters": ([[], [0, 5]], [[-1], [0.5], [True], ["1"]], "a list of integers of at least 0"),
    "train_data_paths": ([["a"]], [[1], ["a", None]], "a list of strings"),
    "train_data_weights": ([[0, 1.5]], [[-1, 1], ["1", 1], [True, 1]], "a list of numbers of at least 0"),
    "optimizer.params.eps": ([0, 1e-8], [-1e-8], "a number of at least 0"),
    "optimizer.params.lr": ([0, 0.1], [-0.1], "a number of at least 0"),
    "optimizer.params.betas": (
        [[0, 0.999]],
        [[0.9, 1], [0.9], [0.9, 0.9, 0.9], [0.9, -0.1]],
        "a list of 2 numbers from",
    ),
    "optimizer.params.momentum": ([0.9], [-0.9], "a number of at least 0"),
    "zero_optimization.stage": ([0, 3], [4], "0, 1, 2 or 3"),
    "zero_optimization.reduce_bucket_size": ([1], [0], "a number of at least 1"),
    "fp16.initial_scale_power": ([0, 16], [-1], "a number from 0 to 127"),
    "fp16.loss_scale_window": ([1], [0], "a number above 0"),
    "flops_profiler.profile_step": ([1], [0], "a number of at least 1"),
    "flops_profiler.module_depth": ([-1], [-2], "a number of at least -1"),
}
# Other keys that a key needs.
COMPANIONS = {
    "hidden_size": {"num_attention_heads": 1},
    "num_attention_heads": {"hidden_size": 16},
    "num_kv_heads": {"num_attention_heads": 4},
    "train_data_weights": {"train_data_paths": ["a", "b"]},
    "valid_data_weights": {"valid_data_paths": ["a", "b"]},
    "test_data_weights": {"test_data_paths": ["a", "b"]},
    "optimizer.params.momentum": {"optimizer.type": "SGD"},
    "seq_length": {"pos_emb": "rotary"},
    "checkpoint_factor": {"checkpoint_scale": "log"},
    **dict.fromkeys(
        ("moe_top_k", "moe_expert_interval", "moe_jitter_eps", "moe_aux_loss_coeff", "moe_z_loss_coeff"),
        {"moe_num_experts": 8, "moe_router_type": "topk"},
    ),
}


def config_with(path, value):
    """Return a configuration that sets the key at `path`, and the other keys that it needs."""
    top, *inner = path.split(".")
    companions = dict(COMPANIONS.get(path, {}))
    section = {"fp16": {"enabled": True}, "bf16": {"enabled": True}, "torch_autocast": {"enabled": True}}.get(top, {})
    if top == "rope_scaling":
        section = {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 8}
        companions["pos_emb"] = "rotary"
    if top == "optimizer":
        section = {"type": companions.pop("optimizer.type", "Adam")}
    config = {top: _nested(section, inner, value) if inner else value, **companions}
    if KEYS[top].mup_only or top.startswith("mup_"):
        config = {"use_mup": True, "base_shapes_file": "shapes", **config}
    if (KEYS[top].same_as or "").startswith("fp16."):
        config["precision"] = "fp16"
    return config


def _nested(section, path, value):
    first, *rest = path
    return {**section, first: _nested({}, rest, value) if rest else value}


@pytest.mark.parametrize("path", LIMITS)
def test_published_limits(path):
    inside, outside, says = LIMITS[path]
    for value in inside:
        assert lines(config_with(path, value)) == [], value
    for value in outside:
        problems = lines(config_with(path, value))
        assert len(problems) == 1 and problems[0].startswith(f"{path}: expected {says}"), (value, problems)
        assert ", got " in problems[0]


def test_every_limited_key_of_a_run_that_trains_is_in_the_table():
    """Limits with an upper bound, sets and patterns must all be in the table."""
    limited = {name for name, key in KEYS.items() if isinstance(key.limit, Range) and key.limit.high is not None}
    named = {name for name, key in KEYS.items() if isinstance(key.limit, OneOf | Pattern)}
    assert (limited | named) - set(LIMITS) == set()


def every_path():
    """Return the fields of all declared keys, at the top level and inside sections."""
    found = dict(FIELDS)

    def walk(path, section):
        for name, field in section_fields(path, section).items():
            found[f"{path}.{name}"] = field
            if key_of(field).section:
                walk(f"{path}.{name}", key_of(field).section)

    for name, key in KEYS.items():
        if key.section:
            walk(name, key.section)
    return found


PATHS = every_path()
LIMITED = {path: field for path, field in PATHS.items() if key_of(field).limit is not None}


def outside(limit, whole):
    """Return a strategy for values of the key's type outside `limit`."""
    if isinstance(limit, Items):
        return st.just([-1] if limit.kind is not str else ["neither of them"] if limit.limit else [1])
    if isinstance(limit, Pattern):
        return st.just("neither of them")
    if isinstance(limit, OneOf) and isinstance(limit.values[0], str):
        return st.text("abc", min_size=1)
    number = st.integers(-(10**6), 10**6) if whole else st.floats(-1e6, 1e6)
    return number.filter(lambda value: not limit.accepts(value))


@pytest.mark.parametrize("path", LIMITED)
@given(data=st.data())
@few
def test_a_value_out_of_range_is_one_error_that_names_the_key(path, data):
    field = LIMITED[path]
    value = data.draw(outside(key_of(field).limit, float not in kinds(field.type)))
    assume(value not in (None, field.default))
    problems = lines(config_with(path, value))
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{path}: expected {key_of(field).limit.expected}, got ")


WRONG = {int: "many", float: "much", str: 3, bool: 3, list: 3, dict: 3}


def typed_paths():
    return [path for path, field in PATHS.items() if set(WRONG) & kinds(field.type)]


@pytest.mark.parametrize("path", typed_paths())
def test_a_value_of_another_type_is_one_error_that_names_the_key(path):
    field = PATHS[path]
    accepted = kinds(field.type)
    value = next(wrong for kind, wrong in WRONG.items() if kind in accepted)
    if isinstance(value, int) and accepted & {int, float}:  # `int | list[int] | Literal["all"]`
        value = "many"
    problems = lines(config_with(path, value))
    assert len(problems) == 1 and problems[0].startswith(f"{path}: "), problems
    refused = key_of(field).status == REFUSED and "." in path
    assert (key_of(field).reason if refused else "expected ") in problems[0]


INTEGERS = [
    path
    for path, field in PATHS.items()
    if int in kinds(field.type) and float not in kinds(field.type) and key_of(field).status == SUPPORTED
]


@pytest.mark.parametrize("path", INTEGERS)
def test_an_integer_can_be_written_as_a_float_with_a_whole_value(path):
    limit = key_of(PATHS[path]).limit
    number = next(n for n in (4, 2) if limit is None or limit.accepts(n))
    as_float, as_int = (NeoXArgs.from_dict(config_with(path, value)) for value in (float(number), number))
    assert json.dumps(as_float.to_dict()) == json.dumps(as_int.to_dict())
    assert json.dumps(as_float.given) == json.dumps(as_int.given)


@pytest.mark.parametrize("path", INTEGERS)
@pytest.mark.parametrize("fraction", [1.5, 2.0000001])
def test_a_fraction_for_an_integer_is_one_error_that_names_the_key(path, fraction):
    [problem] = lines(config_with(path, fraction))
    assert problem.startswith(f"{path}: expected an integer") and problem.endswith(f", got {fraction}")


@pytest.mark.parametrize("path", ["coord_check_widths", "extra_save_iters"])
def test_integers_in_a_list_can_be_written_as_floats(path):
    args = NeoXArgs.from_dict(config_with(path, [6.4e1, 128, 1e3]))
    assert repr(getattr(args, path)) == "[64, 128, 1000]"
    [problem] = lines(config_with(path, [64, 128.5]))
    assert problem.startswith(f"{path}: expected a list of integers")


@pytest.mark.parametrize("path", sorted({path.rpartition(".")[0] for path in PATHS if "." in path}))
def test_a_typo_inside_a_section_names_file_line_key_and_the_nearest_key(write, path):
    name = next(name for parent, _, name in (p.rpartition(".") for p in PATHS) if parent == path and len(name) > 4)
    typo = name[:-2] + name[-1]
    pairs = [f"{key}: {json.dumps(value)}\n" for key, value in config_with(f"{path}.{typo}", True).items()]
    file = write("seed: 1\n" + "".join(pairs))
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([file])
    [line] = [line for line in str(error.value).splitlines() if typo in line]
    assert line.startswith(f"{file}:2: {path}.{typo}: unknown key; did you mean '{name}'?")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (at_least(1), "a number of at least 1"),
        (above(0), "a number above 0"),
        (Range(0, 1), "a number from 0 to 1"),
        (Range(0, 1, high_included=False), "a number from 0 to below 1"),
        (one_of(0, 1, 2, 3), "0, 1, 2 or 3"),
        (one_of("a"), "a"),
        (Items(str), "a list of strings"),
        (Items(int, at_least(0)), "a list of integers of at least 0"),
        (Items(float, Range(0, 1, high_included=False), 2), "a list of 2 numbers from 0 to below 1"),
    ],
)
def test_limits_in_words(limit, words):
    assert limit.expected == words
    for other in (None, "x", True, [True], {}, float("nan"), float("inf")):
        assert not limit.accepts(other)


def mutants(limit):
    """Return limits that differ from `limit` at one end or by one value."""
    if isinstance(limit, OneOf):
        return [OneOf(limit.values[:-1]), OneOf((*limit.values, "poem" if isinstance(limit.values[0], str) else 4))]
    if not isinstance(limit, Range):
        return [None]
    changes = [{"low": limit.low - 1}, {"low": limit.low + 1}, {"low_included": not limit.low_included}]
    if limit.high is not None:
        changes += [{"high": limit.high + 1}, {"high_included": not limit.high_included}]
    return [dataclasses.replace(limit, **change) for change in changes]


@pytest.mark.parametrize("path", LIMITS)
def test_a_changed_limit_fails_the_test(path, monkeypatch):
    """The table above is independent of the declarations and detects every change."""
    field = PATHS[path]
    key = key_of(field)
    for limit in mutants(key.limit):
        mutant = dataclasses.replace(key, limit=limit)
        monkeypatch.setattr(field, "metadata", {"key": mutant})
        if field.name in KEYS and path in (field.name, key.same_as):
            monkeypatch.setitem(KEYS, field.name, mutant)
        with pytest.raises(AssertionError):
            test_published_limits(path)
    monkeypatch.undo()
    test_published_limits(path)


def test_a_value_out_of_range_names_file_and_line(write):
    path = write("seed: 1\nhidden_dropout: 1.5\nzero_optimization:\n  stage: 4\n")
    with pytest.raises(ConfigError) as error:
        NeoXArgs.from_ymls([path])
    assert str(error.value).splitlines() == [
        f"{path}:2: hidden_dropout: expected a number from 0 to below 1, got 1.5",
        f"{path}:3: zero_optimization.stage: expected 0, 1, 2 or 3, got 4",
    ]
