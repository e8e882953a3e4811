"""GPT-NeoX's functions: a training loop of one's own, with its checkpoints and samples."""

import pytest
import torch

import megatron
from megatron import NeoXArgs, initialize_megatron, mpu, print_rank_0
from megatron.checkpointing import load_weights
from megatron.errors import ConfigError
from megatron.gpt_neox import (
    generate_samples_from_prompt,
    load_checkpoint,
    save_checkpoint,
    setup_model_and_optimizer,
)


@pytest.fixture
def neox_args(tmp_path):
    return NeoXArgs.from_dict(
        {
            "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 16, "pos_emb": "rotary",
            "tokenizer_type": "CharLevelTokenizer", "train_iters": 4, "train_micro_batch_size_per_gpu": 2,
            "optimizer": {"type": "Adam", "params": {"lr": 1e-2}}, "save": str(tmp_path / "checkpoints"),
        },
        world_size=1,
    )  # fmt: skip


def test_a_loop_saves_loads_and_samples(neox_args, capsys):
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
    assert model.training
    again, *_ = setup_model_and_optimizer(neox_args)
    assert neox_args.iteration == 2
    assert all(torch.equal(value, trained[name]) for name, value in again.module.named_parameters())
    print_rank_0("step", 2)
    assert capsys.readouterr().out.endswith("step 2\n")


def test_mistakes_name_the_cause(neox_args):
    with pytest.raises(ConfigError, match="model: expected the engine that setup_model_and_optimizer returned"):
        save_checkpoint(neox_args, 1, torch.nn.Linear(1, 1), None, None)
    with pytest.raises(ConfigError, match="load: missing"):
        load_checkpoint(neox_args, torch.nn.Linear(1, 1), None, None)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = megatron.no_such_name
