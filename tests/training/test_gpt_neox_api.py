"""GPT-NeoX's functions: a training loop of one's own, with its checkpoints and samples."""

import io
import json
import subprocess
import sys

import pytest
import torch
import yaml

import megatron
from megatron import NeoXArgs, initialize_megatron, mpu, print_rank_0
from megatron.checkpointing import load_weights
from megatron.errors import ConfigError, DataError
from megatron.gpt_neox import (
    generate_samples_from_prompt,
    generate_samples_input_from_file,
    generate_samples_interactive,
    generate_samples_unconditional,
    load_checkpoint,
    save_checkpoint,
    setup_for_inference_or_eval,
    setup_model_and_optimizer,
)
from tests.training.harness import ROOT


def keys(tmp_path):
    return {
        "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 16, "pos_emb": "rotary",
        "tokenizer_type": "CharLevelTokenizer", "train_iters": 4, "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2}}, "save": str(tmp_path / "checkpoints"),
    }  # fmt: skip


@pytest.fixture
def neox_args(tmp_path):
    return NeoXArgs.from_dict(keys(tmp_path), world_size=1)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("utils", ["print_rank_0", "setup_for_inference_or_eval"]),
        ("training", ["pretrain", "setup_model_and_optimizer"]),
        ("checkpointing", ["load_checkpoint", "save_checkpoint"]),
        (
            "text_generation_utils",
            [f"generate_samples_{way}" for way in ("from_prompt", "input_from_file", "unconditional", "interactive")],
        ),
    ],
)
def test_gpt_neox_import_paths(module, names):
    """`from megatron.training import setup_model_and_optimizer` and its like work in a fresh process."""
    homes = ", ".join(f"{name}.__module__" for name in names)
    code = f"from megatron.{module} import {', '.join(names)}\nprint({homes})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"megatron.gpt_neox", "megatron.training"}


def test_an_unknown_name_of_such_a_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'megatron.checkpointing' has no attribute 'upload_checkpoint'"):
        _ = megatron.checkpointing.upload_checkpoint


def check_other_ways_to_sample(tmp_path, neox_args, model, capsys, monkeypatch):
    """From a file, without a prompt, from typed prompts, and with the model of a command line."""
    (tmp_path / "prompts").write_text(" ab \n\ncd\n")
    options = {"maximum_tokens": 3, "temperature": 1.0}
    expected = generate_samples_from_prompt(neox_args, model, ["ab", "cd"], **options)
    found = generate_samples_input_from_file(neox_args, model, str(tmp_path / "prompts"), **options)
    assert [sample["text"] for sample in found] == [sample["text"] for sample in expected]
    lines = [json.loads(line) for line in (tmp_path / "prompts.output.jsonl").read_text().splitlines()]
    assert lines == found and [line["context"] for line in lines] == ["ab", "cd"]
    assert set(lines[0]) == {"context", "text", "length", "finished", "duration_seconds"}
    with pytest.raises(DataError, match="input_file: .*nowhere: No such file"):
        generate_samples_input_from_file(neox_args, model, str(tmp_path / "nowhere"))

    target = tmp_path / "samples.jsonl"
    samples = generate_samples_unconditional(neox_args, model, 3, str(target), **options)
    assert [json.loads(line) for line in target.read_text().splitlines()] == samples
    assert [sample["context"] for sample in samples] == [""] * 3

    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n"))
    capsys.readouterr()
    generate_samples_interactive(neox_args, model, **options)
    assert capsys.readouterr().out == expected[0]["text"] + "\n\n"

    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump({**keys(tmp_path), "load": neox_args.load}))
    loaded, of_command = setup_for_inference_or_eval(input_args=[str(config)])
    assert not loaded.module.training and of_command.no_load_optim
    again = generate_samples_from_prompt(of_command, loaded, ["ab", "cd"], **options)
    assert [sample["text"] for sample in again] == [sample["text"] for sample in expected]
    assert not loaded.module.training, "sampling does not start dropout"


def test_a_loop_saves_loads_and_samples(tmp_path, neox_args, capsys, monkeypatch):
    initialize_megatron(neox_args)
    assert mpu.get_model_parallel_world_size() == 1
    model, optimizer, schedule, reference = setup_model_and_optimizer(neox_args)
    assert neox_args.iteration == 0 and reference is None
    tokens = torch.arange(32).reshape(2, 16)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        model.backward(loss)
        model.step()
    save_checkpoint(neox_args, 2, model, optimizer, schedule)
    trained = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    saved = load_weights(neox_args.save).weights
    assert all(torch.equal(saved[name].float(), value.float()) for name, value in trained.items())

    with torch.no_grad():
        for value in model.module.parameters():
            value.zero_()
    neox_args.load = neox_args.save
    assert load_checkpoint(neox_args, model, optimizer, schedule) == 2
    assert all(torch.equal(value, trained[name]) for name, value in model.module.named_parameters())

    first, second = generate_samples_from_prompt(neox_args, model, ["ab", ""], maximum_tokens=3)
    assert (first["context"], second["context"]) == ("ab", "") and first["length"] <= 3
    assert generate_samples_from_prompt(neox_args, model, "ab", maximum_tokens=3)[0]["text"] == first["text"]
    assert model.module.training
    again, *_ = setup_model_and_optimizer(neox_args)
    assert neox_args.iteration == 2
    assert all(torch.equal(value, trained[name]) for name, value in again.module.named_parameters())
    check_other_ways_to_sample(tmp_path, neox_args, again, capsys, monkeypatch)
    print_rank_0("step", 2)
    assert capsys.readouterr().out.endswith("step 2\n")


def test_mistakes_name_the_cause(neox_args):
    with pytest.raises(ConfigError, match="model: expected the engine that setup_model_and_optimizer returned"):
        save_checkpoint(neox_args, 1, torch.nn.Linear(1, 1), None, None)
    with pytest.raises(ConfigError, match="load: missing"):
        load_checkpoint(neox_args, torch.nn.Linear(1, 1), None, None)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = megatron.no_such_name
