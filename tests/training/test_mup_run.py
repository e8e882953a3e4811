"""muP in the trainer: base-shape files, and mutations for the coordinate check and the audit."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

from megatron.audit.run import run_audit
from megatron.errors import BaseShapeError, ConfigError
from megatron.initialize import initialize_megatron
from megatron.model import attention
from megatron.neox_arguments.resolve import audit_config, coordinate_check_config, model_config, save_base_shapes_config
from megatron.parametrization.base_shapes import canonical_name, load_base_shapes
from megatron.training.coord_check_run import CoordinateCheck, compressed, run_coord_check
from megatron.training.engine import learning_rate_schedule
from megatron.training.model_from_config import model_plan
from megatron.training.save_base_shapes import run_save_base_shapes
from mup import plan, rules
from mup.slopes import verdict
from tests.training.harness import COORDINATE_CHECK as CHECK
from tests.training.harness import arguments, configuration, coordinate_records, run_script

FILE_ONLY = {"mup_base_hidden_size": None, "mup_base_num_attention_heads": None}


def saved(corpus, tmp_path, **changes):
    """Save the base shapes of the model of width 16, as described in the guide. Returns the prefix."""
    prefix = tmp_path / "shapes" / "base"
    base = {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "save_base_shapes": True,
        "base_shapes_file": str(prefix),
    }
    config = {**configuration(corpus, tmp_path), **FILE_ONLY, **base, **changes}
    file = run_save_base_shapes(save_base_shapes_config(arguments(config)), initialize_megatron())
    assert file == tmp_path / "shapes" / "base.0" and file.is_file()
    return prefix


def with_file(corpus, tmp_path, prefix, **changes):
    return arguments({**configuration(corpus, tmp_path), **FILE_ONLY, "base_shapes_file": str(prefix), **changes})


def plan_of(args):
    return {name: plan.scaling for name, plan in model_plan(model_config(args), 512).parameters.items()}


def test_a_target_run_reads_the_base_from_the_files(corpus, tmp_path):
    prefix = saved(corpus, tmp_path)
    by_file = plan_of(with_file(corpus, tmp_path, prefix))
    assert by_file == plan_of(arguments(configuration(corpus, tmp_path)))
    assert by_file["layers.0.mlp.dense_h_to_4h.weight"].lr == 1 / 4
    deeper = plan_of(with_file(corpus, tmp_path, prefix, num_layers=3))  # additional layers are like those of the base
    assert deeper["layers.2.mlp.dense_h_to_4h.weight"] == by_file["layers.0.mlp.dense_h_to_4h.weight"]


def test_plain_files_and_those_of_gpt_neox_load(corpus, tmp_path):
    prefix = saved(corpus, tmp_path)
    lines = [line for line in (tmp_path / "shapes" / "base.0").read_text().splitlines() if not line.startswith("#")]
    plain = tmp_path / "plain.bsh"
    plain.write_text("\n".join(lines) + "\n")
    one_head = {"mup_base_num_attention_heads": 1}
    expected = plan_of(with_file(corpus, tmp_path, prefix))
    assert plan_of(with_file(corpus, tmp_path, plain, **one_head)) == expected

    def neox(match: re.Match[str]) -> str:
        names = {
            "embedding": "sequential.0",
            "final_norm": "sequential.5.norm",
            "readout": "sequential.6.final_linear",
        }
        return names[match[0]] if match[0] in names else f"sequential.{int(match[1]) + 2}"

    renamed = [re.sub(r"^(?:layers\.(\d+)|embedding|final_norm|readout)", neox, line) for line in lines]
    (tmp_path / "neox.bsh.0").write_text("\n".join(renamed) + "\n")
    assert plan_of(with_file(corpus, tmp_path, tmp_path / "neox.bsh", **one_head)) == expected


@pytest.mark.parametrize(
    ("neox", "ours"),
    [
        ("sequential.0.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("tied_modules.embed.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("sequential.2.mlp.linear1.weight", "layers.0.mlp.dense_h_to_4h.weight"),
        ("4.input_layernorm.scale", "layers.2.input_layernorm.weight"),
        ("5.norm.scale", "final_norm.weight"),
        ("layers.0.attention.dense.weight", "layers.0.attention.dense.weight"),
    ],
)
def test_names_of_gpt_neox(neox, ours):
    assert canonical_name(neox) == ours


def edited(prefix, pattern, replacement):
    file = prefix.with_name(prefix.name + ".0")
    text = file.read_text()
    assert re.search(pattern, text)
    file.write_text(re.sub(pattern, replacement, text, count=1))


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"readout\.weight:\n(- .*\n)+", "", r"readout\.weight is missing in .*base\.0"),
        (
            r"(readout\.weight:\n- .*\n- )16",
            r"\g<1>17",
            r"dimension 1 of readout\.weight is 17.*base\.0.*give 16",
        ),
        (
            r"(layers\.0\.mlp\.dense_4h_to_h\.weight:\n- )16",
            r"\g<1>null",
            r"dimension 0 of .*dense_4h_to_h.* is finite",
        ),
        (r"final_norm\.bias:", "other.bias:", r"final_norm\.bias|other\.bias"),
        (r"- 16\n", "- sixteen\n", r"base\.0.*line"),
        (r"hidden-size: 16", "hidden-size: 32", r"base\.0"),
    ],
)
def test_files_that_do_not_fit_raise_with_the_name(corpus, tmp_path, pattern, replacement, message):
    prefix = saved(corpus, tmp_path)
    edited(prefix, pattern, replacement)
    with pytest.raises(BaseShapeError, match=message):
        model_plan(model_config(with_file(corpus, tmp_path, prefix)), 512)


def test_the_file_of_another_model_raises(corpus, tmp_path):
    prefix = saved(corpus, tmp_path, activation="swiglu")
    with pytest.raises(BaseShapeError, match=r"layers\.0\.mlp"):
        model_plan(model_config(with_file(corpus, tmp_path, prefix)), 512)
    with pytest.raises(BaseShapeError, match="save-base-shapes"):
        model_plan(model_config(with_file(corpus, tmp_path, tmp_path / "nowhere")), 512)


def test_keys_and_files_that_disagree_raise(corpus, tmp_path):
    prefix = saved(corpus, tmp_path)
    args = with_file(corpus, tmp_path, prefix, mup_base_hidden_size=32, mup_base_num_attention_heads=2)
    with pytest.raises(BaseShapeError, match=r"mup-base-hidden-size is 32 .* 16 in .*base\.0"):
        model_plan(model_config(args), 512)


def test_files_of_several_ranks_are_merged(corpus, tmp_path):
    prefix = saved(corpus, tmp_path)
    text = prefix.with_name("base.0").read_text()
    head, rest = text.split("layers.1.", 1)
    prefix.with_name("base.0").write_text(head)
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    prefix.with_name("base.1").write_text(f"{comments}\nlayers.1.{rest}")
    assert len(load_base_shapes(prefix).files) == 2
    assert plan_of(with_file(corpus, tmp_path, prefix)) == plan_of(arguments(configuration(corpus, tmp_path)))


def test_zero_init_of_a_tied_readout_is_an_error(corpus, tmp_path):
    with pytest.raises(ConfigError, match="no_weight_tying"):
        arguments(configuration(corpus, tmp_path), no_weight_tying=False, mup_readout_zero_init=True)


def check(corpus, tmp_path, **changes):
    args = arguments(configuration(corpus, tmp_path, **{**CHECK, **changes}))
    return run_coord_check(coordinate_check_config(args), initialize_megatron())


def caught(corpus, tmp_path, **changes):
    """Whether the verdict without a reference fails, as it must for a mutation."""
    return not verdict(coordinate_records(corpus, tmp_path, **changes)).passed


def with_cell(role, **changes):
    """The table with one changed cell in the Adam column."""
    column = dict(rules.TABLE[rules.Family.ADAM])
    column[role] = dataclasses.replace(column[role], **changes)
    return {**rules.TABLE, rules.Family.ADAM: column}


def test_coordinate_check_passes_writes_its_files_and_prints_its_progress(corpus, tmp_path, capsys):
    result = check(corpus, tmp_path)
    widths = sorted({int(row["width"]) for row in csv.DictReader((tmp_path / "coord_check.0.csv").open())})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("coordinate check: ")]
    expected = [(rule, f"width {width} measured") for rule in ("muP", "SP") for width in widths]
    assert [tuple(line.removeprefix("coordinate check: ").split(" (")[0].split(", ")) for line in lines] == expected
    assert lines[-1].endswith(f"({len(widths)} of {len(widths)})")
    assert result.passed, result.mup.table()
    assert not result.sp.passed
    names = {"coord_check_up.0.jpg", "coord_check_sp.0.jpg", "coord_check.0.csv", "coord_check.0.json"}
    assert {file.name for file in result.files} == names and all(file.stat().st_size for file in result.files)
    stored = json.loads((tmp_path / "coord_check.0.json").read_text())
    assert stored["up"]["passed"] and not stored["sp"]["passed"]
    kinds = {row.module for row in result.mup.rows}
    assert {"embedding", "attention.logits", "mlp.dense_4h_to_h", "block", "readout"} <= kinds


@pytest.mark.parametrize(
    ("role", "change"),
    [
        (rules.Role.HIDDEN, {"lr": rules.ONE}),
        (rules.Role.HIDDEN, {"init_std": rules.ONE}),
        (rules.Role.INPUT, {"lr": rules.Power(width=-1)}),
    ],
    ids=["hidden lr unscaled", "hidden init unscaled", "embedding lr over m"],
)
def test_coordinate_check_detects_a_wrong_rule(corpus, tmp_path, monkeypatch, role, change):
    monkeypatch.setattr(rules, "TABLE", with_cell(role, **change))
    assert caught(corpus, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coord_check_seeds": 2}, "3 or more seeds, got 2; see coord_check_widths"),
        ({"coord_check_widths": [16, 32, 128]}, "4 or more widths, got 3"),
        ({"coord_check_widths": [16, 32, 32, 128]}, "4 or more widths, got 3"),
        ({"coord_check_widths": [32, 48, 64, 128]}, "8x range"),
        ({"coord_check_widths": [16, 32, 64, 130]}, "multiple of num_attention_heads"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 0.0}}, "min_lr": 0.0}, "lr 0 nothing changes"),
    ],
)
def test_a_check_without_evidence_is_refused_before_it_trains(corpus, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(CoordinateCheck, "measure", lambda *arguments: pytest.fail("a model was trained"))
    with pytest.raises(ConfigError, match=message):
        check(corpus, tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"no_weight_tying": False},
        {"mup_weight_decay_mode": "constant"},
        {"mup_weight_decay_mode": "independent", "weight_decay": 0.01},
        {"num_kv_heads": 1, "mup_base_num_kv_heads": 1},  # the base is among the widths
        {"mup_base_hidden_size": 32, "mup_base_num_attention_heads": 2, "coord_check_widths": [16, 32, 64, 128]},
        {"activation": "swiglu", "norm": "rmsnorm", "use_qk_layernorm": True},
        {"mup_depth_alpha": 1.0, "mup_base_num_layers": 1},
        {"gpt_j_residual": True, "pos_emb": "learned", "max_position_embeddings": 16},
    ],
)
def test_coordinate_check_passes_correct_models(corpus, tmp_path, changes):
    result = check(corpus, tmp_path, **changes)
    assert result.passed, result.mup.table()


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_coordinate_check_detects_a_wrong_readout_multiplier(corpus, tmp_path, monkeypatch, exponent):
    from megatron.parametrization import widths

    monkeypatch.setattr(widths, "readout_mult", lambda m, temperature=1.0: m**-exponent / temperature)
    assert caught(corpus, tmp_path)


def test_coordinate_check_detects_a_schedule_that_resets_the_groups(corpus, tmp_path, monkeypatch):
    """GPT-NeoX has this bug: the scheduler sets every group to the base rate."""
    from megatron.training.learning_rates import Scheduler

    def reset(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.num_steps)

    monkeypatch.setattr(Scheduler, "apply", reset)
    assert caught(corpus, tmp_path)


WARM_UP = {"train_iters": 100, "warmup": 0.1, "lr_decay_style": "cosine", "min_lr": 3e-4}


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        # two updates of warm-up, then half of the cosine: 0.3 + (1 - 0.3) x (1 + cos(pi / 2)) / 2
        ({}, [0.5, 1, 1, 0.55]),
        ({"coord_check_lr": 6e-3}, [1, 2, 2, 1.1]),
        ({"lr_decay_style": "constant", "warmup": 0.0}, [1, 1, 1, 1]),
        ({"lr_decay_style": "wsd", "lr_cooldown_fraction": 0.2}, [0.5, 1, 1, 0.55]),
        ({"train_iters": None}, [1, 1, 1, 1]),
    ],
)
def test_the_coordinate_check_compresses_the_schedule_of_the_run(corpus, tmp_path, changes, rates):
    keys = {**CHECK, **WARM_UP, **changes}
    config = coordinate_check_config(arguments(configuration(corpus, tmp_path, **keys)))
    schedule = learning_rate_schedule(compressed(config.schedule))
    assert [schedule(step) for step in range(4)] == pytest.approx([3e-3 * rate for rate in rates])


@pytest.mark.slow
def test_a_check_with_warm_up_and_decay_passes(corpus, tmp_path):
    result = check(corpus, tmp_path, **WARM_UP)
    assert result.passed and not result.sp.passed, result.mup.table()


@pytest.mark.slow
def test_a_large_eps_does_not_change_how_updates_scale(corpus, tmp_path, monkeypatch):
    """Slopes of every kind of module over widths 32 to 256 at eps 1e-4 are those at 1e-8 within 0.12."""

    def slopes(eps):
        optimizer = {"type": "Adam", "params": {"lr": 3e-3, "eps": eps}}
        changes = {"mup_base_hidden_size": 32, "mup_base_num_attention_heads": 2, "use_qk_layernorm": True}
        changes |= {"optimizer": optimizer, "coord_check_widths": [32, 64, 128, 256]}
        found = verdict(coordinate_records(corpus, tmp_path, **changes))
        return {(row.module, row.t): row.slope for row in found.rows if row.statistic == "rms_delta"}

    small, large = slopes(1e-8), slopes(1e-4)
    assert small.keys() == large.keys() and len(small) > 5
    assert {key: large[key] for key in small if abs(large[key] - small[key]) > 0.12} == {}
    # as with eps / m of hidden matrices alone
    monkeypatch.setattr(rules, "TABLE", with_cell(rules.Role.INPUT, eps=rules.ONE))
    unscaled = slopes(1e-4)
    assert unscaled["embedding", 4] < small["embedding", 4] - 0.12


def audit(corpus, tmp_path, **changes):
    return run_audit(audit_config(arguments(configuration(corpus, tmp_path, **changes))), initialize_megatron())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_mup": False},
        {"mup_embedding_mult": 3.0, "mup_output_temp": 2.0, "mup_attn_temp": 0.5, "mup_init_scale": 0.7},
        {"mup_weight_decay_mode": "independent", "mup_query_zero_init": True, "mup_readout_zero_init": True},
        {"num_kv_heads": 2, "mup_base_num_attention_heads": 4, "activation": "swiglu", "norm": "rmsnorm"},
        {"no_weight_tying": False, "pos_emb": "learned", "max_position_embeddings": 16},
        {"mup_base_num_layers": 1, "mup_depth_alpha": 1.0, "zero_optimization": {"stage": 1}},
        {"sliding_window_width": 3},
        {"pos_emb": "alibi"},
        {"pos_emb": "rpe", "mup_rp_embedding_mult": 3.0, "num_attention_heads": 2, "mup_base_num_attention_heads": 2},
        {"pos_emb": "rpe", "use_mup": False},
        {"norm": "scalenorm", "use_qk_layernorm": True, "pos_emb": "sinusoidal", "mup_embedding_mult": 3.0},
        {"norm": "non_parametric_layernorm", "opt_pos_emb_offset": 2, "pos_emb": "learned", "seq_length": 14}
        | {"max_position_embeddings": 16},
    ],
)
def test_audit_passes_correct_models(corpus, tmp_path, changes):
    result = audit(corpus, tmp_path, **changes)
    assert result.passed, [row for row in (*result.parameters, *result.factors) if not row.passed]


def test_audit_detects_standard_attention(corpus, tmp_path, monkeypatch):
    """A few training steps do not reveal attention with 1/sqrt(d). Only the audit detects it."""
    monkeypatch.setattr(
        attention.CoreAttention,
        "forward",
        lambda self, q, k, v, bias=None: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    )
    departing = [row.name for row in audit(corpus, tmp_path, num_attention_heads=1).factors if not row.passed]
    assert departing == ["layers.0 attention scale", "layers.1 attention scale"]


def test_audit_detects_a_lost_lr_mult_and_a_second_rescale(corpus, tmp_path, monkeypatch):
    from megatron.model import build
    from megatron.parametrization import groups
    from megatron.training import engine

    def forget(*arguments, **options):
        made = groups.parameter_groups(*arguments, **options)
        for group in made:
            group["lr_mult"] = 1.0
        return made

    monkeypatch.setattr(engine, "parameter_groups", forget)
    monkeypatch.setattr(engine, "learning_rate_multipliers", lambda plans: None)
    rows = audit(corpus, tmp_path).parameters
    wrong = {row.role for row in rows if {"lr", "lr at last", "lr of the update at peak"} <= set(row.departures)}
    assert wrong == {"hidden"} and any(row.passed for row in rows)

    def twice(parameters, *args, initialise=build.initialise):
        parameters = list(parameters)
        initialise(parameters, *args)
        with torch.no_grad():
            dict(parameters)["readout.weight"].mul_(math.sqrt(4))

    monkeypatch.setattr(build, "initialise", twice)
    rows = audit(corpus, tmp_path).parameters
    assert [row.name for row in rows if "init_std" in row.departures] == ["readout.weight"]


@pytest.mark.xdist_group("multiprocess")
def test_the_commands_of_the_guide(corpus, tmp_path):
    """save-base-shapes with the launcher exits with 0 and writes <file>.0, which a target run reads."""
    prefix = tmp_path / "base-shapes"
    base = {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "save_base_shapes": True,
        "base_shapes_file": str(prefix),
    }
    config = {k: v for k, v in configuration(corpus, tmp_path / "log").items() if k not in FILE_ONLY}
    (tmp_path / "base.json").write_text(json.dumps({**config, **base}))
    done = run_script(["deepy.py", "train.py", str(tmp_path / "base.json")])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "base-shapes.0").is_file()
    target = {**config, "base_shapes_file": str(prefix), "hidden_size": 64, "num_attention_heads": 1}
    (tmp_path / "target.json").write_text(json.dumps(target))
    done = run_script(["train.py", str(tmp_path / "target.json"), "--train-iters", "2"])
    assert done.returncode == 0, done.stderr
    assert "finished at step 2" in done.stdout


FIXED = {"hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 1, "mup_base_num_kv_heads": 1}


@pytest.mark.slow
def test_fixed_key_value_heads_pass_and_drift_with_the_init_of_hidden_values(corpus, tmp_path, monkeypatch):
    changes = {**FIXED, "mup_base_hidden_size": 32, "mup_base_num_attention_heads": 2}
    changes["coord_check_widths"] = [64, 128, 256, 512]
    result = check(corpus, tmp_path, **changes)
    assert result.passed, result.mup.table()
    # values like any hidden rows: the std of the other rows, and no zero start for the check
    monkeypatch.setattr(plan, "_part_factor", lambda part, *args: 0.0 if part.name == "query" else 1.0)
    drifting = verdict(coordinate_records(corpus, tmp_path, **changes))
    worst = max((row for row in drifting.rows if row.statistic == "rms_delta"), key=lambda row: row.slope)
    kept = {(row.module, row.statistic, row.t): row.slope for row in result.mup.rows}
    assert worst.slope > kept[worst.module, worst.statistic, worst.t] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"pos_emb": "alibi", "sliding_window_width": 6},
        {"pos_emb": "rpe", "rpe_num_buckets": 8, "rpe_max_distance": 12, "mup_rp_embedding_mult": 2.0},
        {"pos_emb": "sinusoidal", "norm": "non_parametric_layernorm"},
        {"norm": "scalenorm", "use_qk_layernorm": True},
    ],
    ids=["alibi", "rpe", "sinusoidal", "scalenorm"],
)
def test_positions_and_norms_pass_the_check_in_mup_and_fail_in_sp(corpus, tmp_path, changes):
    def records(use_mup):
        keys = {key: value for key, value in changes.items() if use_mup or not key.startswith("mup")}
        return coordinate_records(corpus, tmp_path, use_mup, **keys)

    up, sp = records(True), records(False)
    assert verdict(up, reference=sp).passed, verdict(up, reference=sp).table()
    assert not verdict(sp).passed
