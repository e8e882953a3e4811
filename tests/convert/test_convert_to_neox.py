"""Checkpoints in GPT-NeoX's format, against the files that a second writer, after GPT-NeoX's own rules, makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron.errors import UserError
from muneox.commands import convert_to_neox
from tests.convert import neox_files
from tests.convert.test_convert_neox_to_hf import MUP_KEYS, RUNS, random_model, run_of
from tests.model.helpers import VOCAB
from tests.training.harness import run_script, train_here


def convert(*arguments: object) -> None:
    assert convert_to_neox.main([str(argument) for argument in arguments]) == 0


def contents(step: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Name of each file -> the tensors in it by name."""
    found = {}
    for file in sorted(step.glob("*.pt")):
        content = torch.load(file, weights_only=False)
        if file.name.startswith("mp_rank"):
            content = content["module"] or {}
        found[file.name] = content
    return {name: tensors for name, tensors in found.items() if "zero_pp" not in name}


@pytest.mark.parametrize("family", RUNS)
@pytest.mark.parametrize("size, plain", [(1, False), (2, False), (2, True)])
def test_files_are_those_of_gpt_neox(family, size, plain, tmp_path):
    """The same files, names, shapes and values. Only the rows that pad the vocabulary are zeros here."""
    model = random_model(family)
    run, checkpoints = run_of(model, family, tmp_path)
    train_here(run)
    rows = 6 if size == 1 else 8
    convert(
        *("--input_dir", checkpoints, "--output_dir", tmp_path / "out", "--tp", size, "--pp", int(not plain)),
        *("--make_vocab_size_divisible_by", rows),
    )
    padding = 42 - VOCAB if size == 1 else 24 - 19
    expected = contents_with(model, tmp_path / "expected", size, plain, padding)
    found = contents(tmp_path / "out" / "global_step0")
    assert list(found) == list(expected)
    summed: dict[tuple[str, str], list[torch.Tensor]] = {}
    for file, tensors in expected.items():
        assert set(found[file]) == set(tensors)
        for name, x in tensors.items():
            y = found[file][name]
            assert y.shape == x.shape and y.untyped_storage().nbytes() == y.numel() * 4
            if "word_embeddings" in name or "final_linear" in name:
                keep = min(len(x), VOCAB - int("_01" in file or "-model_01" in file) * len(x))
                assert torch.equal(y[:keep], x[:keep]) and not y[keep:].any()
            elif name.endswith(("dense.bias", "linear2.bias")):  # GPT-NeoX adds up those of a parallel residual
                place = (name, file[:8] if file.startswith("layer") else "")
                summed.setdefault(place, []).append(x - y)
            else:
                assert torch.equal(x, y), name
    for parts in summed.values():
        torch.testing.assert_close(sum(parts), torch.zeros_like(parts[0]), rtol=0, atol=1e-7)
    assert (tmp_path / "out" / "latest").read_text() == "global_step0"


def contents_with(model, folder: Path, size: int, plain: bool, padding: int) -> dict[str, dict[str, torch.Tensor]]:
    step = folder / "global_step7"
    step.mkdir(parents=True)
    for rank in range(size):
        layers = neox_files.layers(model, rank, size, padding=padding)
        if plain:
            module = {f"sequential.{number}.{name}": x for number in layers for name, x in layers[number].items()}
            torch.save({"module": module}, step / f"mp_rank_{rank:02d}_model_states.pt")
            continue
        for number, layer in layers.items():
            torch.save(layer, step / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")
        torch.save({"module": None}, step / f"mp_rank_{rank:02d}_model_states.pt")
    return contents(step)


def test_multipliers_of_mup_are_folded(tmp_path, capsys):
    """Read again without muP, the checkpoint gives the logits of the run with muP."""
    from muneox.commands import convert_neox_to_hf
    from tests.convert.hugging_face import load

    run, checkpoints = run_of(random_model("llama"), "llama", tmp_path, **MUP_KEYS)
    train_here(run)
    convert("--input_dir", checkpoints, "--output_dir", tmp_path / "out")
    said = capsys.readouterr().out
    assert "embedding x 3 (embedding)" in said and "logits x 0.5 (readout)" in said
    for source, target, more in (
        (checkpoints, "with", []),
        (tmp_path / "out", "without", ["--config_file", str(without_mup(run, tmp_path))]),
    ):
        arguments = ["--input_dir", str(source), "--output_dir", str(tmp_path / target), *more]
        assert convert_neox_to_hf.main([*arguments, "--no_save_tokenizer"]) == 0
    x = torch.arange(30)[None] % VOCAB
    with torch.no_grad():
        a, b = (load(tmp_path / name)(x).logits[..., :VOCAB] for name in ("with", "without"))
    assert a.std() > 0.05 and float((a - b).abs().max()) < 1e-4


def without_mup(run: dict, folder: Path) -> Path:
    import yaml

    file = folder / "plain.yml"
    file.write_text(yaml.safe_dump({key: value for key, value in run.items() if key not in MUP_KEYS}))
    return file


def test_mistakes(tmp_path):
    arguments = ["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="holds no checkpoint"):
        convert_to_neox.main(arguments)
    done = run_script(["tools/ckpts/convert_to_neox.py", *arguments, "--tp", "0"])
    assert done.returncode == 2 and "--tp: expected a positive number, got 0" in done.stderr
