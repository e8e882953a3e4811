"""Checkpoints of GPT-NeoX load with equal logits, from every layout, and are never called damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron.checkpointing import NeoxCheckpoint, find_intact, is_neox, load_weights
from megatron.checkpointing.integrity import write_manifest, write_torch
from megatron.errors import CheckpointError
from megatron.model import GPT
from megatron.model.build import meta_model
from megatron.training.model_from_config import neox_assembly
from tests.convert import neox_files
from tests.convert.models import FAMILIES, SCALENORM, model, plan
from tests.model.helpers import tokens


def read(step: Path, family: str, **changes: object) -> GPT:
    described = plan(family, **changes)
    weights = load_weights(step, assembly=neox_assembly(described)).weights
    fresh = meta_model(described.config.without_padding(), described.factors)
    fresh.load_state_dict(weights, assign=True)
    return fresh.eval()


@pytest.mark.parametrize("family", [*FAMILIES, SCALENORM])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("plain", [True, False])
def test_logits_are_equal(family, size, plain, tmp_path):
    saved = model(family)
    neox_files.write(saved, tmp_path, size=size, plain=plain)
    x = tokens()
    torch.testing.assert_close(read(tmp_path, family)(x), saved(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["neox", "llama, grouped"])
@pytest.mark.parametrize("plain", [True, False])
def test_former_names_are_read(family, plain, tmp_path):
    """Pythia, GPT-NeoX-20B: mlp.dense_h_to_4h, stored frequencies. LLaMA: w1, w2 and w3. Without mp_rank files."""
    saved = model(family)
    neox_files.write(saved, tmp_path, size=2, plain=plain, naming="legacy", ranks=False)
    x = tokens()
    torch.testing.assert_close(read(tmp_path, family)(x), saved(x), rtol=1e-5, atol=1e-6)


def test_copies_that_drifted_apart_are_averaged(tmp_path):
    """As in GPT-NeoX-20B, whose ranks hold different norms; upstream's tools average them."""
    saved = model("neox")
    step = neox_files.write(saved, tmp_path, size=2)
    for rank, change in ((0, -0.5), (1, 0.5)):
        file = step / f"layer_02-model_{rank:02d}-model_states.pt"
        layer = torch.load(file, weights_only=True)
        layer["input_layernorm.weight"] += change
        torch.save(layer, file)
    x = tokens()
    torch.testing.assert_close(read(tmp_path, "neox")(x), saved(x), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_neox_is_recognised(tmp_path, checkpoints_of_ours):
    saved = model("neox")
    for place, options in (("a", {}), ("b", {"ranks": False}), ("c", {"plain": True})):
        step = neox_files.write(saved, tmp_path / place, **options)
        assert is_neox(step) and find_intact(tmp_path / place) == step
        assert find_intact(step) == step
    renamed = step.rename(step.parent / "0")  # as upstream's convert_hf_llama_to_neox.py writes it
    (tmp_path / "c" / "latest").write_text("0")
    assert find_intact(tmp_path / "c") == renamed == find_intact(renamed)
    assert not is_neox(checkpoints_of_ours) and not is_neox(tmp_path / "nothing")
    (checkpoints_of_ours / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="manifest.json"):
        find_intact(checkpoints_of_ours)


@pytest.fixture
def checkpoints_of_ours(tmp_path):
    step = tmp_path / "ours" / "global_step1"
    step.mkdir(parents=True)
    state = {"module": {"norm.weight": torch.ones(3)}, "client_state": {}, "iteration": 1}
    write_manifest(step, 1, {"mp_rank_00_model_states.pt": write_torch(step / "mp_rank_00_model_states.pt", state)})
    (tmp_path / "ours" / "latest").write_text("global_step1")
    return step


def test_another_architecture_is_a_list_of_tensors(tmp_path):
    neox_files.write(model("neox"), tmp_path, size=2)
    with pytest.raises(CheckpointError) as error:
        read(tmp_path, "llama", num_layers=3, hidden_size=64)
    text = str(error.value)
    assert "is a checkpoint of another model. It has 2 blocks, and the configuration has 3" in text
    lines = {line.split("  ")[1]: line for line in text.splitlines()[1:] if line.startswith("  ")}
    embedding = lines["embedding.word_embeddings.weight"]
    assert "[44, 32]" in embedding and "[37, 64]" in embedding  # 37 tokens and the padding of two ranks
    assert "(absent)" in lines["layers.2.attention.dense.weight"]
    assert any("layer 02: attention.dense.bias" in name and "(absent)" in line for name, line in lines.items())


def test_weights_in_zero_shards_are_an_error_with_a_way_out(tmp_path):
    step = tmp_path / "global_step7"
    step.mkdir()
    module = {"sequential.0.word_embeddings.weight": torch.empty(0)}
    torch.save(neox_files.header(module, 0, 1), step / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="zero_to_fp32"):
        load_weights(step, assembly=neox_assembly(plan("neox")))


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    step = neox_files.write(model("neox"), tmp_path)
    torch.save({"input_layernorm.weight": Malicious()}, step / "layer_02-model_00-model_states.pt")
    with pytest.raises(CheckpointError, match="layer_02-model_00"):
        read(tmp_path, "neox")
    assert not (tmp_path / "ran").exists()


def test_a_missing_rank_is_named(tmp_path):
    step = neox_files.write(model("neox"), tmp_path, size=2)
    for file in step.glob("layer_*-model_00-*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="ranks from 0"):
        NeoxCheckpoint(step, neox_assembly(plan("neox")))
