"""transfer.py: differences that break the transfer or shift the optimum, and the proxy of a target."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields import KEYS
from megatron.neox_arguments.transfer import TransferClass
from muneox.analysis.make_proxy import dump, make_proxy
from muneox.analysis.transfer import Kind, compare
from muneox.commands import transfer

ROOT = Path(__file__).resolve().parents[2]
BASE, TARGET = ROOT / "configs/mup/base.yml", ROOT / "configs/mup/target.yml"


@pytest.fixture
def pair() -> tuple[NeoXArgs, NeoXArgs]:
    return tuple(NeoXArgs.from_ymls([file], world_size=1) for file in (BASE, TARGET))  # type: ignore[return-value]


def found(proxy: NeoXArgs, target: NeoXArgs, kind: Kind) -> list[str]:
    return [finding.key for finding in compare(proxy, target) if finding.kind is kind]


def test_the_demos_proxy_transfers_to_its_target(pair: tuple[NeoXArgs, NeoXArgs]) -> None:
    assert found(*pair, Kind.BREAKS) == [] and found(*pair, Kind.SHIFTS) == []
    assert {"hidden_size", "num_attention_heads"} <= set(found(*pair, Kind.GROWS))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"use_mup": False}, "use_mup"),
        ({"mup_base_hidden_size": 128}, "mup_base_hidden_size"),
        ({"mup_base_num_attention_heads": 4}, "mup_base_num_attention_heads"),
        ({"mup_depth_alpha": 1.0}, "mup_depth_alpha"),
        ({"mup_weight_decay_mode": "constant"}, "mup_weight_decay_mode"),
        ({"lr_decay_style": "linear"}, "lr_decay_style"),
        ({"lr_decay_iters": 150}, "lr_decay_iters"),
        ({"min_lr": 0.0}, "min_lr"),
        ({"lr": 0.001, "min_lr": 0.0001}, "lr"),
        ({"mup_output_temp": 2.0}, "mup_output_temp"),
        ({"optimizer.params.betas": [0.9, 0.999]}, "optimizer.params.betas"),
        ({"optimizer": {"type": "SGD", "params": {"lr": 0.0078125}}}, "optimizer_type"),
        ({"activation": "relu"}, "activation"),
        ({"no_weight_tying": False}, "no_weight_tying"),
        ({"pos_emb": "none"}, "pos_emb"),
        ({"init_method": "small_init"}, "init_method"),
        ({"tokenizer_type": "CharLevelTokenizer"}, "tokenizer_type"),
    ],
)
def test_what_breaks_the_transfer_is_reported(pair: tuple[NeoXArgs, NeoXArgs], changes: dict, key: str) -> None:
    assert key in found(pair[0], pair[1].replace(**changes), Kind.BREAKS)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train_micro_batch_size_per_gpu": 32}, "train_batch_size"),
        ({"train_iters": 3000}, "train_iters"),
        ({"warmup": 0.01}, "warmup"),
        ({"seq_length": 256}, "seq_length"),
        ({"num_layers": 6}, "num_layers"),
        ({"num_attention_heads": 2}, "head dimension"),
        ({"weight_decay": 0.01}, "weight_decay"),
        ({"hidden_dropout": 0.1}, "hidden_dropout"),
        ({"precision": "bfloat16"}, "precision"),
        ({"intermediate_size": 512, "mup_base_intermediate_size": 256}, "intermediate_size"),
    ],
)
def test_differences_that_shift_the_optimum_are_reported_with_a_source(
    pair: tuple[NeoXArgs, NeoXArgs], changes: dict, key: str
) -> None:
    target = pair[1].replace(**changes)
    findings = [finding for finding in compare(pair[0], target) if finding.kind is Kind.SHIFTS]
    assert [finding.key for finding in findings] == [key]
    assert findings[0].why and findings[0].source


@pytest.mark.parametrize(
    "changes",
    [{"save": "x"}, {"log_interval": 3}, {"seed": 5}, {"zero_stage": 1}, {"checkpoint_activations": True}],
)
def test_irrelevant_differences_are_not_reported(pair: tuple[NeoXArgs, NeoXArgs], changes: dict) -> None:
    assert compare(*pair) == compare(pair[0], pair[1].replace(**changes))


def test_the_same_batch_in_other_micro_batches_is_the_same(pair: tuple[NeoXArgs, NeoXArgs]) -> None:
    cut = pair[1].replace(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=2)
    assert found(pair[0], cut, Kind.SHIFTS) == [] == found(pair[0], cut, Kind.BREAKS)


def test_two_standard_models_have_nothing_to_transfer(pair: tuple[NeoXArgs, NeoXArgs]) -> None:
    proxy, target = (args.replace(use_mup=False) for args in pair)
    assert "use_mup" in found(proxy, target, Kind.BREAKS)


def test_a_proxy_as_wide_as_its_target_is_refused(pair: tuple[NeoXArgs, NeoXArgs]) -> None:
    assert "hidden_size" in found(pair[1], pair[1], Kind.BREAKS)


def test_depth_is_reported_even_with_a_rule_that_covers_it(pair: tuple[NeoXArgs, NeoXArgs]) -> None:
    proxy, target = (args.replace(mup_depth_alpha=1.0, mup_base_num_layers=3) for args in pair)
    [finding] = [f for f in compare(proxy, target.replace(num_layers=6)) if f.key == "num_layers"]
    assert finding.kind is Kind.SHIFTS and "alpha 1 covers it" in finding.why
    assert found(proxy, target.replace(num_layers=6), Kind.BREAKS) == []


# Written by hand: what the papers and the design say about these keys.
CLASSES = {
    TransferClass.GROWS: {"hidden_size", "num_attention_heads", "num_kv_heads", "intermediate_size"},
    TransferClass.SHIFTS: {
        *("train_batch_size", "train_iters", "warmup", "seq_length", "precision", "weight_decay", "attention_dropout"),
        *("hidden_dropout", "z_loss", "data_path", "split", "train_data_paths", "train_data_weights"),
    },
    TransferClass.MUST_MATCH: {
        *("lr", "init_method_std", "mup_init_scale", "mup_attn_temp", "mup_output_temp", "mup_embedding_mult"),
        *("use_mup", "mup_depth_alpha", "mup_eps_scaling", "lr_decay_style", "optimizer_type", "tokenizer_type"),
        *("norm", "activation", "pos_emb", "rotary_pct", "no_weight_tying", "gradient_clipping", "eod_mask_loss"),
    },
    TransferClass.FREE: {
        *("seed", "save", "load", "log_dir", "num_workers", "zero_stage", "model_parallel_size", "pipe_parallel_size"),
        *("checkpoint_activations", "gradient_accumulation_steps", "eval_iters", "padded_vocab_size", "launcher"),
    },
    TransferClass.COMBINED: {"num_layers", "min_lr", "optimizer", "mup_base_hidden_size", "lr_decay_iters"},
}


def test_important_keys_have_the_expected_class() -> None:
    for kind, names in CLASSES.items():
        assert {name: KEYS[name].transfer.kind for name in names} == dict.fromkeys(names, kind)


def test_a_difference_that_matters_has_a_reason_and_a_source() -> None:
    for key in KEYS.values():
        if key.transfer.kind in (TransferClass.SHIFTS, TransferClass.MUST_MATCH):
            assert key.transfer.why and key.transfer.source


@pytest.mark.parametrize("shape", ["125M.yml", "pythia/1B.yml", "llama2/70B.yml", "mistral/7B.yml"])
def test_the_made_proxy_of_a_published_shape_transfers_to_it(tmp_path: Path, shape: str) -> None:
    file = ROOT / "configs" / shape
    target = NeoXArgs.from_ymls([file], {"lr": 1e-3, "min_lr": 1e-4, "train_iters": 10}, world_size=1)
    made = make_proxy(target, [str(file)], None)
    (tmp_path / "proxy.yml").write_text(dump(made.values, ["a proxy"]))
    keys_of_both = {"lr": 1e-3, "min_lr": 1e-4, "train_iters": 10}
    proxy = NeoXArgs.from_ymls([tmp_path / "proxy.yml"], keys_of_both, world_size=1)
    fitted = target.replace(**made.target_keys)
    assert found(proxy, fitted, Kind.BREAKS) == [] and found(proxy, fitted, Kind.SHIFTS) == []
    assert proxy.num_layers == target.num_layers
    assert proxy.hidden_size and proxy.num_attention_heads and target.hidden_size and target.num_attention_heads
    assert proxy.hidden_size // proxy.num_attention_heads == target.hidden_size // target.num_attention_heads
    assert proxy.hidden_size < target.hidden_size


def test_a_width_that_does_not_fit_is_refused(pair: tuple[NeoXArgs, NeoXArgs]) -> None:
    for width, said in ((48, "multiple of the head dimension 32"), (320, "must be narrower"), (0, "multiple")):
        with pytest.raises(ConfigError, match=said):
            make_proxy(pair[1], [str(TARGET)], width)


def test_the_script_compares_makes_a_proxy_keeps_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transfer.main([str(BASE), str(TARGET), "--vocab-size", "512"]) == 0
    assert "transfer: holds" in capsys.readouterr().out
    made = tmp_path / "proxy.yml"
    assert transfer.main([str(made), str(TARGET), "--make", "--vocab-size", "512", "--width", "64"]) == 0
    assert "24 trials" in capsys.readouterr().out
    assert transfer.main([str(made), str(TARGET), "--vocab-size", "512"]) == 0
    with pytest.raises(ConfigError, match="already exists"):
        transfer.main([str(made), str(TARGET), "--make", "--vocab-size", "512"])
    with pytest.raises(ConfigError, match="width 320 and .* 64: the proxy, which is the narrower model, comes first"):
        transfer.main([str(TARGET), str(BASE), "--vocab-size", "512"])


def test_the_script_is_brief_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert transfer.main([str(BASE), str(TARGET), "--vocab-size", "512"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("transfer: holds (hidden_size 64 -> 320;")
    assert transfer.main([str(BASE), str(TARGET), "--vocab-size", "512", "--all"]) == 0
    assert "layers.2.mlp.dense_4h_to_h.weight" in capsys.readouterr().out


def test_the_script_prints_each_parameters_rate_and_std(capsys: pytest.CaptureFixture[str]) -> None:
    transfer.main([str(BASE), str(TARGET), "--vocab-size", "512", "--brief"])
    rows = {
        cells[0]: cells
        for line in capsys.readouterr().out.splitlines()
        if "│" in line and len(cells := line.strip("│").replace(" ", "").split("│")) == 8
    }
    assert rows["layers.*.mlp.dense_h_to_4h.weight"][4:] == ["5", "0.02236", "0.001563", "0.5"]
    assert rows["readout.weight"][4:] == ["5", "0.05", "0.007812", "0.1"]
