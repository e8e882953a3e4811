"""convert_hf_to_neox on models of transformers with random weights, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from megatron.checkpointing import find_intact, load_weights
from megatron.data.indexed_dataset import IndexedDatasetBuilder
from megatron.errors import UserError
from megatron.model import GPT
from megatron.model.build import meta_model
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import conversion_config
from megatron.training.model_from_config import model_plan, neox_assembly
from muneox.commands import convert_hf_to_neox, convert_neox_to_hf
from tests.convert.hugging_face import assert_same_model, load, transformers
from tests.convert.test_convert_neox_to_hf import words
from tests.model.helpers import VOCAB
from tests.training.harness import run_script, train_here

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    initializer_range=0.2,
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "neox": ("GPTNeoX", dict(rotary_pct=0.25)),
    "neox, sequential": ("GPTNeoX", dict(use_parallel_residual=False, rotary_pct=1.0, hidden_act="gelu_new")),
    "neox, few biases, tied": ("GPTNeoX", dict(attention_bias=False, tie_word_embeddings=True, layer_norm_eps=1e-3)),
    "llama": ("Llama", dict(rope_theta=500000.0)),
    "llama, grouped": ("Llama", dict(num_key_value_heads=2, rope_scaling=LLAMA3, rms_norm_eps=1e-5)),
    "llama, biases, tied": (
        "Llama",
        dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, hidden_act="gelu"),
    ),
    "llama, linear": ("Llama", dict(rope_scaling={"rope_type": "linear", "factor": 4.0})),
    "mistral": ("Mistral", dict(num_key_value_heads=2, sliding_window=6)),
    "mistral, no window": ("Mistral", dict(num_key_value_heads=1, sliding_window=None)),
}


def random_model(name: str) -> Any:
    """A model whose biases and norms are not at their initial 0 and 1."""
    kind, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save(name: str, folder: Path, **options: Any) -> Any:
    model = random_model(name)
    model.save_pretrained(folder, **options)
    return model


def convert(*arguments: object) -> None:
    assert convert_hf_to_neox.main([str(argument) for argument in arguments]) == 0


def read(folder: Path) -> GPT:
    """Our model by model.yml, with the weights of the checkpoint."""
    args = NeoXArgs.from_ymls([folder / "model.yml"], world_size=8)
    described = model_plan(conversion_config(args).model, VOCAB)
    path = find_intact(folder)
    assert path is not None
    fresh = meta_model(described.config.without_padding(), described.factors)
    fresh.load_state_dict(load_weights(path, assembly=neox_assembly(described)).weights, assign=True)
    return fresh.eval()


@pytest.mark.parametrize(
    "name, layout",
    [
        *((name, ("--tp", 1)) for name in MODELS),
        *((name, ("--tp", 2, "--pp", 0)) for name in MODELS if MODELS[name][1].get("num_key_value_heads") != 1),
    ],
)
def test_logits_and_text_are_equal(name, layout, tmp_path):
    theirs = save(name, tmp_path / "hf")
    convert("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox", *layout)
    assert_same_model(read(tmp_path / "neox"), theirs)


@pytest.mark.parametrize("name", ["neox", "llama, grouped", "mistral"])
def test_there_and_back(name, tmp_path):
    """Every tensor keeps its bits and every setting its value."""
    theirs = save(name, tmp_path / "hf", max_shard_size="10KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    convert("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox", "--tp", 2)
    back = tmp_path / "back"
    step, keys = tmp_path / "neox" / "global_step0", tmp_path / "neox" / "model.yml"
    arguments = ["--input_dir", step, "--config_file", keys, "--output_dir", back, "--no_save_tokenizer"]
    assert convert_neox_to_hf.main([str(argument) for argument in arguments]) == 0
    found = load(back)
    before, after = theirs.config.to_dict(), found.config.to_dict()
    own = ("transformers_version", "bos_token_id", "eos_token_id", "initializer_range", "_name_or_path", "dtype")
    same = {key: value for key, value in before.items() if key not in (*own, "vocab_size")}
    assert same == {key: after[key] for key in same}
    rows = {"model.embed_tokens.weight", "lm_head.weight", "gpt_neox.embed_in.weight", "embed_out.weight"}
    for key, x in theirs.state_dict().items():
        y = found.state_dict()[key]
        assert torch.equal(x, y[: x.shape[0]]) and (key in rows or x.shape == y.shape)
        assert not y[x.shape[0] :].any()  # the padding for two ranks


def test_files_of_torch(tmp_path):
    theirs = save("llama", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    state = {**theirs.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    convert("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox", "--precision", "bf16")
    layer = torch.load(tmp_path / "neox" / "global_step0" / "layer_02-model_00-model_states.pt", weights_only=True)
    stored = theirs.state_dict()["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(layer["mlp.linear2.weight"], stored.bfloat16())


def periodic_corpus(folder: Path) -> Path:
    """Documents whose samples are all 0 to 31, again and again."""
    builder = IndexedDatasetBuilder(folder / "periodic_document", np.uint16)
    for _ in range(20):
        builder.add_item(np.arange(320) % 32)
        builder.end_document()
    builder.finalize()
    return folder / "periodic_document"


def test_a_run_starts_from_the_weights(tmp_path, capsys):
    """model.yml starts a run whose loss is that of transformers on the same tokens."""
    theirs = save("llama, grouped", tmp_path / "hf")
    words(tmp_path / "hf")
    convert("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox")
    said = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert f"LlamaForCausalLM, {count:,} parameters in torch.float32" in said
    keys = yaml.safe_load((tmp_path / "neox" / "model.yml").read_text())
    assert keys["vocab-file"] == str(tmp_path / "neox" / "tokenizer" / "tokenizer.json")
    run = {
        "optimizer": {"type": "Adam", "params": {"lr": 1e-30}},
        "train_batch_size": 4,
        "train_iters": 1,
        "eval_iters": 0,
        "num_workers": 0,
        "log_interval": 1,
        "data_path": str(periodic_corpus(tmp_path)),
        "log_dir": str(tmp_path / "log"),
    }
    result = train_here({name.replace("-", "_"): value for name, value in keys.items()} | run)
    batch = torch.arange(keys["seq-length"] + 1)[None] % 32
    with torch.no_grad():
        expected = float(theirs(batch, labels=batch).loss)
    assert result.train_loss == pytest.approx(expected, abs=2e-5)


# --- mistakes ---


def failed(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        convert_hf_to_neox.main([str(argument) for argument in arguments])
    return str(error.value)


def change(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"model_type": "gpt2"}, "model_type: gpt2; only gpt_neox, llama, mistral can be converted"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: quick_gelu; only"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope_scaling: type yarn"),
        ({"rope_parameters": {"rope_theta": 10000.5}}, "rope_theta: 10000.5"),
        ({"head_dim": 16}, "head_dim: hidden_size must be"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: its weights are quantised"),
        ({"hidden_size": "32"}, "hidden_size: expected int, got '32'"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected a positive number, got 0"),
        ({"vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_a_feature_that_is_not_supported_is_named(fields, named, tmp_path):
    save("llama", tmp_path / "hf")
    change(tmp_path / "hf", **fields)
    said = failed("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox")
    assert f"config.json: {named}" in said and "\n" not in said
    assert not (tmp_path / "neox").exists()


def test_tensors_of_another_model_are_listed(tmp_path):
    save("llama", tmp_path / "hf")
    change(tmp_path / "hf", num_hidden_layers=3, intermediate_size=64, attention_bias=True)
    said = failed("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox")
    lines = {line.split()[0]: line for line in said.splitlines()[1:]}
    assert "[48, 32]" in lines["model.layers.0.mlp.up_proj.weight"]
    assert "[64, 32]" in lines["model.layers.0.mlp.up_proj.weight"]
    assert "(absent)" in lines["model.layers.1.self_attn.q_proj.bias"]
    change(tmp_path / "hf", num_hidden_layers=1, intermediate_size=48, attention_bias=False)
    said = failed("--input_dir", tmp_path / "hf", "--output_dir", tmp_path / "neox")
    assert "model.layers.1.mlp.up_proj.weight" in said


def test_damaged_folders(tmp_path):
    folder = tmp_path / "hf"
    arguments = ["--input_dir", folder, "--output_dir", tmp_path / "neox"]
    assert "holds no config.json" in failed(*arguments)
    save("llama", folder, max_shard_size="10KB")
    assert "--tp: 4 key-value heads cannot be split into 3 parts" in failed(*arguments, "--tp", 3)
    lost = sorted(folder.glob("*.safetensors"))[1]
    content = lost.read_bytes()
    lost.write_bytes(content[:100])
    assert f"{lost} cannot be loaded" in failed(*arguments)
    lost.unlink()
    assert f"lists the file {lost.name}, which is not in the folder" in failed(*arguments)
    for file in folder.glob("model*"):
        file.unlink()
    assert "holds no weights: expected model.safetensors or pytorch_model.bin" in failed(*arguments)
    (folder / "config.json").write_text("[1]")
    assert "expected a JSON object" in failed(*arguments)


def test_the_script(tmp_path):
    save("neox", tmp_path / "hf")
    script = ["tools/ckpts/convert_hf_to_neox.py", "--input_dir", str(tmp_path / "hf")]
    done = run_script([*script, "--output_dir", str(tmp_path / "neox")])
    assert done.returncode == 0, done.stderr
    assert "no tokenizer: " in done.stdout
    again = run_script([*script, "--output_dir", str(tmp_path / "neox")])
    assert again.returncode == 1 and "exists already" in again.stderr and "Traceback" not in again.stderr
