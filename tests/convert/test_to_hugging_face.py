"""Exported models give our logits and our text in transformers. Multipliers of muP are folded, or Granite's fields."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor

from megatron.architecture import MixtureOfExperts, RopeScaling, Widths
from megatron.errors import CheckpointError
from megatron.model import GPT
from megatron.model.build import plan_model
from megatron.parametrization.widths import Multipliers
from muneox.conversion import resources
from muneox.conversion.families import choose_family
from muneox.conversion.resources import complete_folder
from muneox.conversion.source import Source
from muneox.conversion.to_hugging_face import check_resources, export_shapes, write_model
from tests.convert.hugging_face import assert_same_model, load
from tests.convert.models import FAMILIES, LLAMA
from tests.model.helpers import build, config, parametrization

MISTRAL = dict(LLAMA, num_kv_heads=2, sliding_window=5)
NEOX = FAMILIES["neox"]
ALL: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("neox" if name.startswith("neox") else "llama", options) for name, options in FAMILIES.items()},
    "neox, whole heads rotated": ("neox", dict(NEOX, rotary_pct=1.0, rotary_base=5000.0, activation="relu")),
    "neox, linear scaling": ("neox", dict(NEOX, rope_scaling=RopeScaling(rope_type="linear", factor=3.0))),
    "llama, linear scaling": ("llama", dict(LLAMA, rope_scaling=RopeScaling(rope_type="linear", factor=4.0))),
    "mistral": ("mistral", MISTRAL),
    "mistral, tied": ("mistral", dict(MISTRAL, tied_readout=True, sliding_window=1)),
}


class Held:
    """Weights of a model in memory."""

    def __init__(self, model: GPT) -> None:
        self.state = model.state_dict()
        self.rows = model.config.vocab_size

    def weight(self, name: str) -> Tensor:
        x = self.state[name]
        return x[: self.rows] if name in ("embedding.word_embeddings.weight", "readout.weight") else x

    def release(self) -> None:
        pass


def source_of(model: GPT, **of_parametrization: Any) -> Source:
    plan = plan_model(model.config, parametrization(model.config, **of_parametrization))
    return Source(Path("checkpoint"), plan, Held(model))


def export(model: GPT, folder: Path, family: str | None = None, size: int = 10**9, **of_parametrization: Any) -> str:
    """Write the model in fp32 and return the name of the family."""
    source = source_of(model, **of_parametrization)
    chosen = choose_family(source.plan.config, family)
    folder.mkdir(exist_ok=True)
    write_model(source, chosen, folder, torch.float32, shard_size=size)
    return chosen.name


def made(options: dict[str, Any], **of_parametrization: Any) -> GPT:
    long = {"seq_length": 64, "max_position_embeddings": 64}
    return build(config(**{**long, **options}), **of_parametrization).eval()


@pytest.mark.parametrize("name", ALL)
def test_logits_and_text_are_equal(name, tmp_path):
    family, options = ALL[name]
    model = made(options)
    assert export(model, tmp_path) == family
    assert_same_model(model, load(tmp_path))


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_dynamic_scaling_beyond_the_original_length(family, tmp_path):
    """transformers keeps rotated keys in its cache, and this model computes them again: their texts differ there."""
    scaling = RopeScaling(rope_type="dynamic", factor=2.0, original_positions=16)
    options = {"neox": dict(NEOX, rotary_pct=0.5), "llama": LLAMA}[family]
    model = made(dict(options, rope_scaling=scaling))
    export(model, tmp_path)
    theirs = load(tmp_path)
    for length in (12, 40):
        assert_same_model(model, theirs, length, text=False)


# --- muP ---


def base(hidden: int, heads: int, kv_heads: int, ffn: int, layers: int = 2) -> Widths:
    return Widths(hidden, heads, kv_heads, ffn, layers)


MULTIPLIERS = Multipliers(attn_temp=1.3, output_temp=0.7, embedding_mult=2.5)


def wide(options: dict[str, Any], mult: int) -> tuple[GPT, dict[str, Any]]:
    """A model `mult` times as wide as its base, twice as deep, with every multiplier, and its parametrization.

    From width multiplier 2 on, the heads grow too, so that the attention scores have another scale than usual.
    """
    grouped = options.get("num_kv_heads") is not None
    head_growth = 2 if mult > 1 else 1
    sizes = dict(
        hidden_size=16 * mult,
        num_attention_heads=4 * mult // head_growth,
        num_kv_heads=(2 if grouped else 4) * mult // head_growth,
        ffn_hidden_size=24 * mult,
    )
    small = base(16, 4, 2 if grouped else 4, 24, layers=1)
    of_parametrization: dict[str, Any] = dict(base=small, multipliers=MULTIPLIERS, depth_alpha=0.5)
    model = made({**options, **sizes}, **of_parametrization)
    with torch.no_grad():
        for parameter in model.parameters():  # logits of a usual size at every width
            if parameter.ndim == 2:
                parameter.mul_(mult**0.5)
    assert model.factors.embedding == 2.5 and model.factors.residual == pytest.approx(0.5**0.5)
    assert model.factors.logits == pytest.approx(1 / (mult * 0.7))
    return model, of_parametrization


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mult", [1, 4, 8])
@pytest.mark.parametrize("family", ["neox", "llama", "mistral"])
def test_multipliers_are_folded_into_the_weights(family, mult, tied, tmp_path):
    neox = dict(NEOX, rotary_pct=0.5)
    options = {"neox": neox, "llama": dict(LLAMA, num_kv_heads=2, attention_bias=True, mlp_bias=True)}
    model, of_parametrization = wide({**options.get(family, MISTRAL), "tied_readout": tied}, mult)
    export(model, tmp_path, **of_parametrization)
    theirs = load(tmp_path)
    assert theirs.config.tie_word_embeddings == tied
    assert not any("multiplier" in key or "scaling" in key for key in theirs.config.to_dict())
    assert_same_model(model, theirs)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mult", [1, 4, 8])
def test_granite_has_the_multipliers_as_fields(mult, tied, tmp_path):
    model, of_parametrization = wide(dict(LLAMA, num_kv_heads=2, attention_bias=True, tied_readout=tied), mult)
    export(model, tmp_path, "granite", **of_parametrization)
    theirs = load(tmp_path)
    assert type(theirs).__name__ == "GraniteForCausalLM"
    assert theirs.config.embedding_multiplier == 2.5
    assert theirs.config.logits_scaling == pytest.approx(mult * 0.7)
    assert theirs.config.residual_multiplier == pytest.approx(0.5**0.5)
    stored = theirs.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(stored, model.state_dict()["embedding.word_embeddings.weight"][: model.config.vocab_size])
    assert_same_model(model, theirs)


# --- files ---


def test_large_models_are_sharded(tmp_path):
    model = made(FAMILIES["llama, grouped"])
    export(model, tmp_path / "one")
    export(model, tmp_path / "many", size=10_000)
    files = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    count = len(files)
    assert count > 3 and files[0] == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole = load(tmp_path / "one").state_dict()
    assert index["metadata"]["total_size"] == sum(x.numel() * 4 for x in whole.values())
    for name, x in load(tmp_path / "many").state_dict().items():
        assert torch.equal(x, whole[name])
        with safetensors.safe_open(tmp_path / "many" / index["weight_map"][name], "pt") as file:
            assert torch.equal(file.get_tensor(name), x)
    sizes = [file.stat().st_size for file in (tmp_path / "many").glob("*.safetensors")]
    assert sum(size > 12_000 for size in sizes) == 0
    assert [file.name for file in (tmp_path / "one").glob("model*")] == ["model.safetensors"]


def test_half_precision_refuses_values_that_overflow(tmp_path):
    model = made(LLAMA)
    source = source_of(model)
    family = choose_family(model.config, None)
    write_model(source, family, tmp_path, torch.bfloat16)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        x = file.get_tensor("model.norm.weight")
    assert torch.equal(x, model.state_dict()["final_norm.weight"].bfloat16())
    model.state_dict()["layers.1.attention.dense.weight"][0, 0] = 1e6
    with pytest.raises(CheckpointError, match="layers.1.self_attn.o_proj.weight.*bf16"):
        write_model(source, family, tmp_path, torch.float16)


def test_a_failed_conversion_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(CheckpointError, match="exists already"), complete_folder(tmp_path / "there"):
        raise AssertionError
    with pytest.raises(CheckpointError, match="values"), complete_folder(tmp_path / "new") as folder:
        (folder / "half").touch()
        raise CheckpointError("values")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# --- refusals ---

EXPERTS = MixtureOfExperts(num_experts=2, top_k=1)


@pytest.mark.parametrize(
    "family, options, named",
    [
        ("neox", LLAMA, ["norm: rmsnorm", "activation: swiglu"]),
        ("neox", dict(NEOX, num_kv_heads=2), ["num_kv_heads"]),
        ("neox", dict(NEOX, activation="softsign"), ["activation: softsign"]),
        ("neox", dict(NEOX, sliding_window=3), ["sliding_window_width"]),
        (None, dict(NEOX, pos_emb="learned"), ["pos_emb: learned"]),
        (None, dict(NEOX, experts=EXPERTS), ["moe_num_experts"]),
        (None, dict(LLAMA, qk_norm=True), ["use_qk_layernorm"]),
        (None, dict(LLAMA, parallel_residual=True), ["gpt_j_residual"]),
        (None, dict(LLAMA, rotary_pct=0.5), ["rotary_pct: 0.5"]),
        ("llama", NEOX, ["norm: layernorm", "activation: gelu", "gpt_j_residual", "rotary_pct"]),
        ("llama", MISTRAL, ["sliding_window_width.*mistral"]),
        ("mistral", dict(MISTRAL, attention_bias=True, mlp_bias=True), ["in_attn_linear.*llama", "in_mlp.*llama"]),
    ],
)
def test_a_feature_that_the_class_lacks_is_named(family, options, named):
    with pytest.raises(CheckpointError, match="(?s)" + ".*".join(named)) as error:
        choose_family(config(**options), family)
    assert len(str(error.value).splitlines()) == 1 + len(named)


def test_too_little_disk_or_memory_is_said_before(tmp_path, monkeypatch):
    source = source_of(made(LLAMA))
    shapes = export_shapes(source, choose_family(source.plan.config, None))
    check_resources(shapes, source, torch.float32, tmp_path / "new")
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: usage(10_000_000))
    with pytest.raises(CheckpointError, match=r"needs 1\d\.\d MB of disk space, and 10.0 MB are free"):
        check_resources(shapes, source, torch.float32, tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr(resources, "free_memory", lambda: 50_000_000)
    with pytest.raises(CheckpointError, match=r"needs 314.* MB of memory|needs 0.3 GB of memory, and 50.0 MB are free"):
        check_resources(shapes, source, torch.float32, tmp_path / "new")
