"""convert_neox_to_hf on checkpoints of this trainer and of GPT-NeoX under every layout, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron.errors import UserError
from megatron.model import GPT
from muneox.commands import convert_neox_to_hf
from tests.convert import neox_files
from tests.convert.hugging_face import assert_same_model, load, transformers
from tests.convert.models import FAMILIES, SCALING
from tests.model.helpers import VOCAB, build, config
from tests.training.harness import run_script, train_here, train_processes

LENGTH = 64
LAYOUTS = {
    "TP 1": (1, {}),
    "TP 2": (2, {"model_parallel_size": 2}),
    "TP 2 x PP 2": (4, {"model_parallel_size": 2, "pipe_parallel_size": 2}),
}
LLAMA_KEYS = {
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-6,
    "activation": "swiglu",
    "intermediate_size": 3 * 48,
    "num_kv_heads": 2,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
    "rotary_emb_base": 500000,
}
MUP_KEYS = {
    "use_mup": True,
    "mup_base_hidden_size": 8,
    "mup_base_num_attention_heads": 2,
    "mup_embedding_mult": 3.0,
    "mup_output_temp": 0.5,
}
LLAMA_SCALING = {
    "rope_type": "llama3",
    "factor": SCALING.factor,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": SCALING.original_positions,
}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "neox": (FAMILIES["neox"], {"rotary_pct": 0.25, "gpt_j_residual": True, "intermediate_size": 48}),
    "llama": (FAMILIES["llama, grouped"], {**LLAMA_KEYS, "rope_scaling": LLAMA_SCALING}),
    "mistral": (
        {**FAMILIES["llama"], "num_kv_heads": 2, "sliding_window": 5},
        {**LLAMA_KEYS, "sliding_window_width": 5},
    ),
}
CLASSES = {"neox": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def words(folder: Path) -> Path:
    """A tokenizer with as many words as the tests' vocabulary has tokens."""
    vocab = {f"w{i}": i for i in range(VOCAB - 1)} | {"<|endoftext|>": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def settings(family: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of the model `family`."""
    common = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": LENGTH,
        "max_position_embeddings": LENGTH,
        "pos_emb": "rotary",
        "no_weight_tying": True,
        "make_vocab_size_divisible_by": 8,
        "tokenizer_type": "HFTokenizer",
        "vocab_file": str(words(folder / "tokenizer")),
    }
    return {**common, **RUNS[family][1], **changes}


def random_model(family: str, **changes: Any) -> GPT:
    lengths = {"seq_length": LENGTH, "max_position_embeddings": LENGTH}
    return build(config(**{**RUNS[family][0], **lengths, **changes})).eval()


def run_of(model: GPT, family: str, folder: Path, **changes: Any) -> tuple[dict[str, Any], Path]:
    """Configuration of a run that starts from the model, and changes no weight at a rate of 1e-30."""
    saved = neox_files.write(model, folder / "neox")
    return {
        **settings(family, folder, **changes),
        "optimizer": {"type": "Adam", "params": {"lr": 1e-30}},
        "train_batch_size": 4,
        "train_iters": 1,
        "eval_iters": 0,
        "num_workers": 0,
        "log_interval": 1,
        "data_path": str(small_corpus(folder)),
        "log_dir": str(folder / "log"),
        "load": str(saved.parent),
        "finetune": True,
        "save": str(folder / "checkpoints"),
        "checkpoint_factor": 1,
    }, folder / "checkpoints"


def small_corpus(folder: Path) -> Path:
    import numpy as np

    from megatron.data.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(folder / "words_document", np.uint16)
    for i in range(40):
        builder.add_item((np.arange(200) * (i + 1)) % VOCAB)
        builder.end_document()
    builder.finalize()
    return folder / "words_document"


def convert(*arguments: object) -> None:
    assert convert_neox_to_hf.main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("family", RUNS)
def test_the_checkpoint_of_a_run(family, tmp_path, capsys):
    """Without a configuration file: the checkpoint holds that of its run."""
    model = random_model(family)
    run, checkpoints = run_of(model, family, tmp_path)
    train_here(run)
    convert("--input_dir", checkpoints, "--output_dir", tmp_path / "hf")
    theirs = load(tmp_path / "hf")
    assert type(theirs).__name__ == CLASSES[family] and theirs.config.vocab_size == VOCAB
    assert_same_model(model, theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.encode("w3 w5 <|endoftext|>") == [3, 5, VOCAB - 1]
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == VOCAB - 1
    said = capsys.readouterr().out
    assert CLASSES[family] in said and f"{sum(p.numel() for p in theirs.parameters()):,} parameters" in said
    assert "folded" not in said  # without muP there is nothing to fold


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
@pytest.mark.parametrize("layout", ["TP 2", "TP 2 x PP 2"])
@pytest.mark.parametrize("family", RUNS)
def test_the_checkpoint_of_a_run_of_several_processes(family, layout, tmp_path):
    count, changes = LAYOUTS[layout]
    model = random_model(family)
    run, checkpoints = run_of(model, family, tmp_path, **changes)
    train_processes(count, run, tmp_path / "run")
    done = run_script(
        ["tools/ckpts/convert_neox_to_hf.py", "--input_dir", str(checkpoints), "--output_dir", str(tmp_path / "hf")]
    )
    assert done.returncode == 0, done.stderr
    assert_same_model(model, load(tmp_path / "hf"))


@pytest.mark.slow
@pytest.mark.xdist_group("multiprocess")
def test_the_checkpoint_of_a_mup_run(tmp_path):
    """TP 2 x PP 2 in bfloat16's place: fp32, with multipliers in every place, as ordinary weights and as Granite."""
    count, changes = LAYOUTS["TP 2 x PP 2"]
    plain = random_model("llama")
    run, checkpoints = run_of(plain, "llama", tmp_path, **MUP_KEYS, **changes)
    train_processes(count, run, tmp_path / "run")
    convert("--input_dir", checkpoints, "--output_dir", tmp_path / "hf")
    convert("--input_dir", checkpoints, "--output_dir", tmp_path / "granite", "--architecture", "granite")
    folded, granite = load(tmp_path / "hf"), load(tmp_path / "granite")
    assert granite.config.embedding_multiplier == 3.0 and granite.config.logits_scaling == 4 * 0.5
    x = torch.arange(30)[None] % VOCAB
    with torch.no_grad():
        assert float((folded(x).logits - granite(x).logits).abs().max()) < 1e-4
        assert float((folded(x).logits - plain(x)).abs().max()) > 0.1


@pytest.mark.parametrize("family", RUNS)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("plain", [True, False])
def test_a_checkpoint_of_gpt_neox(family, size, plain, tmp_path):
    """Its padding of the vocabulary has a probability there, so its rows are kept."""
    model = random_model(family)
    saved = neox_files.write(model, tmp_path / "neox", size=size, plain=plain)
    file = tmp_path / "model.yml"
    file.write_text(yaml.safe_dump(settings(family, tmp_path, model_parallel_size=size)))
    convert("--input_dir", saved, "--config_file", file, "--output_dir", tmp_path / "hf", "--no_save_tokenizer")
    theirs = load(tmp_path / "hf")
    assert theirs.config.vocab_size == (VOCAB + 3 if size == 1 else 38 + 6)
    x = torch.arange(20)[None]
    with torch.no_grad():
        ours, found = model(x), theirs(x).logits[..., :VOCAB]
    assert float((ours - found).abs().max()) < 1e-4
    assert not (tmp_path / "hf" / "tokenizer.json").exists()


# --- mistakes ---


@pytest.fixture
def neox(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of GPT-NeoX and its configuration file."""
    saved = neox_files.write(random_model("neox"), tmp_path / "neox")
    file = tmp_path / "model.yml"
    file.write_text(yaml.safe_dump(settings("neox", tmp_path)))
    return saved, file


def failed(*arguments: object) -> str:
    """The message of the error that a conversion ends with."""
    with pytest.raises(UserError) as error:
        convert_neox_to_hf.main([str(argument) for argument in arguments])
    return str(error.value)


def test_another_architecture_is_a_list_of_tensors(neox, tmp_path):
    file = tmp_path / "wide.yml"
    file.write_text(yaml.safe_dump(settings("llama", tmp_path, hidden_size=64)))
    script = "tools/ckpts/convert_neox_to_hf.py"
    done = run_script(
        [script, "--input_dir", str(neox[0]), "--config_file", str(file), "--output_dir", str(tmp_path / "hf")]
    )
    said = done.stderr
    assert done.returncode == 1 and said.startswith("error: ") and "Traceback" not in said
    assert "is a checkpoint of another model" in said and not (tmp_path / "hf").exists()
    for line in ("final_norm.weight", "layer 02: attention.dense.bias"):
        assert line in said


def test_another_architecture_of_a_checkpoint_of_ours(tmp_path):
    run, checkpoints = run_of(random_model("neox"), "neox", tmp_path)
    train_here(run)
    file = tmp_path / "other.yml"
    file.write_text(yaml.safe_dump(settings("neox", tmp_path, num_layers=3, intermediate_size=64)))
    said = failed("--input_dir", checkpoints, "--config_file", file, "--output_dir", tmp_path / "hf")
    assert "is a checkpoint of another model" in said
    assert "layers.2.attention.dense.weight" in said and "(absent)" in said and "[48, 32]" in said


def test_mistakes_are_one_sentence(neox, tmp_path):
    saved, file = neox
    out = tmp_path / "hf"
    assert "--config_file: missing" in failed("--input_dir", saved, "--output_dir", out)
    assert "holds no checkpoint" in failed("--input_dir", tmp_path / "nothing", "--output_dir", out)
    said = failed("--input_dir", saved, "--config_file", file, "--output_dir", out, "--architecture", "llama")
    assert "LlamaForCausalLM of transformers cannot represent this model" in said and "gpt_j_residual" in said
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    said = failed("--input_dir", saved, "--config_file", file, "--output_dir", out)
    assert "vocab-file" in said and "--no_save_tokenizer" in said
    assert not out.exists()
    (out / "file").parent.mkdir()
    (out / "file").touch()
    said = failed("--input_dir", saved, "--config_file", file, "--output_dir", out, "--no_save_tokenizer")
    assert "exists already" in said


def test_tokenizers_that_transformers_has_not(neox, tmp_path, capsys):
    file = tmp_path / "bytes.json"
    keys = {**settings("neox", tmp_path), "tokenizer_type": "CharLevelTokenizer"}
    file.write_text(json.dumps(keys))
    convert("--input_dir", neox[0], "--config_file", file, "--output_dir", tmp_path / "hf")
    assert "no tokenizer files: transformers has no tokenizer of type CharLevelTokenizer" in capsys.readouterr().out
