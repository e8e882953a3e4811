"""Base-shape files of a small model: written, read, merged over ranks, and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron.architecture import Widths
from megatron.errors import BaseShapeError
from megatron.parametrization.base_shapes import (
    base_widths,
    canonical_name,
    check_base_shapes,
    load_base_shapes,
    save_base_shapes,
)
from tests.parametrization.helpers import BASE, make_plan, scaled

TARGET = scaled(4)
DELTA = dataclasses.replace(BASE, hidden_size=64, ffn_hidden_size=256)
EMBEDDING = "embedding.word_embeddings.weight"
DOWN = "layers.1.mlp.dense_4h_to_h.weight"


def shapes(widths: Widths) -> dict[str, tuple[int, ...]]:
    return {name: plan.shape for name, plan in make_plan(widths, widths).parameters.items()}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Files of two ranks: the second holds the parameters of layer 1, the first all others."""
    base = shapes(BASE)
    for rank in (0, 1):
        own = {name: shape for name, shape in base.items() if name.startswith("layers.1.") == bool(rank)}
        save_base_shapes(tmp_path / "folder" / f"base.{rank}", own, shapes(DELTA), BASE, f"rank {rank}")
    return tmp_path / "folder" / "base"


def test_a_file_is_yaml_with_the_base_dimensions_in_comments(prefix: Path) -> None:
    import yaml

    text = prefix.with_name("base.1").read_text()
    entries = yaml.safe_load(text)
    assert set(entries) == {name for name in shapes(BASE) if name.startswith("layers.1.")}
    assert entries[DOWN] == [32, 128]
    assert yaml.safe_load(prefix.with_name("base.0").read_text())[EMBEDDING] == [None, 32]  # the vocabulary is finite
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    assert "mup-base-hidden-size: 32" in comments and "mup-base-num-layers: 2" in comments
    assert "base ffn hidden size: 128" in comments and "layout: rank 1" in comments


def test_files_of_all_ranks_are_read_together(prefix: Path) -> None:
    loaded = load_base_shapes(prefix)
    assert [file.name for file in loaded.files] == ["base.0", "base.1"] and "base.1" in loaded.names
    assert set(loaded.shapes) == set(shapes(BASE))
    assert base_widths(loaded, TARGET, 1, 1) == BASE
    check_base_shapes(loaded, shapes(BASE), shapes(TARGET), BASE.num_layers)


def test_a_plain_file_has_the_shapes_widths_and_the_given_heads(prefix: Path) -> None:
    loaded = dataclasses.replace(load_base_shapes(prefix), dims={})
    assert base_widths(loaded, TARGET, 4, 2) == dataclasses.replace(BASE, num_attention_heads=4, num_kv_heads=2)
    without = {name: shape for name, shape in loaded.shapes.items() if name != EMBEDDING}
    with pytest.raises(BaseShapeError, match=f"parameter {EMBEDDING} is missing"):
        base_widths(dataclasses.replace(loaded, shapes=without), TARGET, 4, 2)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (1, f"{DOWN}:\n- 32\n- 128", f"{DOWN}:\n- 32\n- 64", f"dimension 1 of {DOWN} is 64 in .* give 128"),
        (1, f"{DOWN}:\n- 32\n- 128", f"{DOWN}:\n- 32\n- null", f"dimension 1 of {DOWN} is finite .* 128 .* and 512 in"),
        (1, f"{DOWN}:\n- 32\n- 128", f"{DOWN}:\n- 32", f"{DOWN} has 1 dimensions in .*, but 2 in this"),
        (1, f"{DOWN}:", "layers.1.other:", f"{DOWN} is missing in "),
        (1, f"{DOWN}:", f"layers.1.other:\n- 1\n{DOWN}:", "layers.1.other is in .*, but not in this model"),
    ],
)
def test_the_file_of_another_model_is_refused(prefix: Path, file: int, old: str, new: str, message: str) -> None:
    path = prefix.with_name(f"base.{file}")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BaseShapeError, match=message):
        check_base_shapes(load_base_shapes(prefix), shapes(BASE), shapes(TARGET), BASE.num_layers)


def test_a_deeper_target_needs_only_the_layers_of_the_base(prefix: Path) -> None:
    deep_base = shapes(dataclasses.replace(BASE, num_layers=3))
    deep = shapes(dataclasses.replace(TARGET, num_layers=3))
    check_base_shapes(load_base_shapes(prefix), deep_base, deep, 2)
    with pytest.raises(BaseShapeError, match="layers.2.* is missing in "):
        check_base_shapes(load_base_shapes(prefix), deep_base, deep, 3)


def test_files_that_disagree_or_cannot_be_read(prefix: Path, tmp_path: Path) -> None:
    second = prefix.with_name("base.1")
    text = second.read_text()
    second.write_text(text + f"{EMBEDDING}:\n- null\n- 48\n")
    with pytest.raises(BaseShapeError, match=f"the shape of {EMBEDDING} differs between .*base.1 and .*base.0"):
        load_base_shapes(prefix)
    second.write_text(text.replace("num-layers: 2", "num-layers: 3"))
    with pytest.raises(BaseShapeError, match="mup-base-num-layers is 3 in .*base.1, but 2 in .*base.0"):
        load_base_shapes(prefix)
    second.write_text("not a list")
    with pytest.raises(BaseShapeError, match="base.1 cannot be read"):
        load_base_shapes(prefix)
    with pytest.raises(BaseShapeError, match="neither .*nothing.0 nor .*nothing exists"):
        load_base_shapes(tmp_path / "nothing")
    with pytest.raises(BaseShapeError, match="cannot be written"):
        save_base_shapes(second / "below-a-file", shapes(BASE), shapes(DELTA), BASE, "")


@pytest.mark.parametrize(
    ("neox", "ours"),
    [
        ("0.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("tied_modules.embed.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("module.sequential.2.attention.dense.bias", "layers.0.attention.dense.bias"),
        ("sequential.5.input_layernorm.scale", "layers.3.input_layernorm.weight"),
        ("3.mlp.linear1.weight", "layers.1.mlp.dense_h_to_4h.weight"),
        ("3.mlp.linear2.weight", "layers.1.mlp.dense_4h_to_h.weight"),
        ("9.norm.scale", "final_norm.weight"),
        ("9.norm.g", "final_norm.weight"),
        ("10.final_linear.weight", "readout.weight"),
        ("layers.1.attention.dense.weight", "layers.1.attention.dense.weight"),
    ],
)
def test_names_of_gpt_neox(neox: str, ours: str) -> None:
    assert canonical_name(neox) == ours
