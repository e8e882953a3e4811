"""generate.py run as a user runs it, on a tiny checkpoint, and the functions behind it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import generate
from megatron.checkpointing.integrity import write_bytes, write_manifest, write_torch
from megatron.errors import CheckpointError, ConfigError, DataError
from megatron.model.build import materialise
from megatron.neox_arguments import NeoXArgs, UsageRequested
from megatron.neox_arguments.resolve import generation_config, model_config
from megatron.sampling import Sampling, generate_tokens
from megatron.text_generation_utils import (
    Sampler,
    generate_from_file,
    generate_interactively,
    load_model,
)
from megatron.tokenizer import build_tokenizer
from megatron.training.model_from_config import model_plan
from megatron.training.report import mup_section

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 32,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "init_method_std": 0.3,
    "tokenizer_type": "CharLevelTokenizer",
    "use_mup": True,
    "mup_base_hidden_size": 16,
    "mup_output_temp": 0.5,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    "train_micro_batch_size_per_gpu": 2,
    "train_iters": 3,
    "maximum_tokens": 12,
    "temperature": 1.0,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with model.yml and a checkpoint of step 3 in checkpoints/, in the format of the trainer."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "model.yml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    write_checkpoint(folder / "checkpoints", model_plan(model_config(NeoXArgs.from_dict(CONFIG)), 512))
    return folder


def write_checkpoint(directory, plan):
    """Write step 3 of one process, in one file that does not record its layout."""
    section = mup_section(SimpleNamespace(plan=plan))
    step = directory / "global_step3"
    step.mkdir(parents=True)
    name = "mp_rank_00_model_states.pt"
    header = {
        "module": materialise(plan, seed=1).state_dict(),
        "iteration": 3,
        "client_state": {"mup": section},
    }
    write_manifest(step, 3, {name: write_torch(step / name, header)})
    write_bytes(step.parent / "latest", b"global_step3")


@pytest.fixture
def run(home, capsys):
    """A function that calls generate.main in this process and returns the printed text."""

    def _run(*argv, **overwrite):
        overwrite = {"load": str(home / "checkpoints"), **overwrite}
        assert generate.main([str(home / "model.yml"), *argv], overwrite) == 0
        return capsys.readouterr().out

    return _run


def command(home, *argv, stdin=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), "model.yml", *argv],
        cwd=home,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


# --- as a script ---


def test_prompt_from_the_command_line(home, run):
    done = command(home, "--load", "checkpoints", "--prompt", "def main(")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("def main(") and len(done.stdout.rstrip("\n")) > len("def main(")
    assert done.stdout == run("--prompt", "def main(")  # the same seed gives the same text in another process


def test_interactive_through_a_pipe(home):
    done = command(home, "--load=checkpoints", "--text-gen-type", "interactive", stdin="ab\n\u00e9\u4e2d")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n\n") >= 2


@pytest.mark.parametrize(
    "argv, code, words",
    [
        (["--load", "nowhere", "--prompt", "a"], 1, ["nowhere", "holds no checkpoint"]),
        (["--load", "checkpoints", "--temprature", "1"], 2, ["temprature", "temperature"]),
        (["--load", "checkpoints", "--hidden-size", "64"], 1, ["factors.logits", "0.5", "saved"]),
    ],
)
def test_mistakes_print_one_message_without_a_traceback(home, argv, code, words):
    done = command(home, *argv)
    assert done.returncode == code and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


def test_sampling_needs_no_deepspeed(home):
    script = (
        "import sys, generate; generate.main(['model.yml', '--load', 'checkpoints', '--prompt', 'a']);"
        "assert 'deepspeed' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=home, env=environment, check=True, timeout=300)


# --- the command line ---


def test_seed_and_recompute(run):
    first = run("--prompt", "import os")
    assert run("--prompt=import os", "--recompute") == first
    assert run("--prompt", "import os", "--seed", "7") != first


def test_several_prompts_and_samples(run):
    text = run("--prompt", "<<one>>", "--prompt", "--two", "--num-samples", "2")
    assert text.count("<<one>>") == 2 and text.count("--two") == 2


def test_unconditional_prints_and_writes(run, tmp_path):
    output = tmp_path / "new" / "samples.txt"
    printed = run("-o", str(output), "--num-samples", "20")
    samples = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(samples) == 20 and {s["context"] for s in samples} == {""}
    assert len({s["text"] for s in samples}) > 15
    assert printed == "".join(s["text"] + "\n" for s in samples)
    assert all(s["length"] == 12 for s in samples if not s["finished"])
    assert list(output.parent.iterdir()) == [output]


def test_input_file(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("one\r\n\n\u2028three\u4e2d".encode())
    output = tmp_path / "out.jsonl"
    run("-i", str(prompts), "-o", str(output), "--num-samples", "2")
    samples = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [s["context"] for s in samples] == [c for c in ("one", "", "\u2028three\u4e2d") for _ in range(2)]
    assert samples[0]["text"] != samples[1]["text"]
    once = tmp_path / "once.jsonl"
    run("-i", str(prompts), "-o", str(once))
    assert [json.loads(line) for line in once.read_text(encoding="utf-8").split("\n")[:-1]] == samples[::2]


def test_equal_lines_get_different_samples(run, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("same\nsame\n")
    run("-i", str(prompts), "-o", str(output))
    first, second = (json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines())
    assert first != second


def test_wrong_usage(home, run, monkeypatch):
    with pytest.raises(ConfigError, match="--prompt needs a text"):
        run("--prompt")
    with pytest.raises(ConfigError, match="--prompt and text-gen-type input-file exclude each other"):
        run("--prompt", "a", "-i", "prompts.txt")
    with pytest.raises(ConfigError, match="sample_input_file"):
        run("--text-gen-type", "input-file")
    with pytest.raises(ConfigError, match="load: missing"):
        run("--prompt", "a", load=None)
    with pytest.raises(UsageRequested, match="--prompt TEXT"):
        generate.main(["--help"])


def test_without_load_the_save_directory_is_sampled(home, run):
    assert run("--prompt", "a", load=None, save=str(home / "checkpoints")) == run("--prompt", "a")


def test_only_one_process_of_a_launch_samples(run, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run("--prompt", "a") == ""


# --- the checkpoint ---


def load(home, **changes):
    args = NeoXArgs.from_dict({**CONFIG, "load": str(home / "checkpoints"), **changes})
    return load_model(generation_config(args), 512)


def test_the_loaded_model_gives_the_training_logits(home):
    model, step = load(home)
    trained = materialise(model_plan(model_config(NeoXArgs.from_dict(CONFIG)), 512), seed=1)
    x = torch.arange(60, 80)[None]
    assert step == 3 and not model.training
    assert torch.equal(model(x), trained(x))
    assert model.factors.logits == 1.0 and model.factors.attention == trained.factors.attention


@pytest.mark.parametrize("divisible_by", [512, 100, 640, 1000])
def test_padding_is_not_part_of_the_sampled_model(home, divisible_by):
    """Whole weights have 512 rows with any padding in the configuration."""
    model, _ = load(home, make_vocab_size_divisible_by=divisible_by)
    trained = materialise(model_plan(model_config(NeoXArgs.from_dict(CONFIG)), 512), seed=1)
    x = torch.arange(60, 80)[None]
    assert model.embedding.word_embeddings.weight.shape == model.readout.weight.shape == (512, 32)
    assert torch.equal(model(x), trained(x))


@pytest.mark.parametrize("vocab_size, divisible_by, tensor", [(97, 128, 2), (500, 128, 1), (501, 1, 2), (512, 1, 1)])
def test_a_converted_checkpoint_can_contain_padding(tmp_path, vocab_size, divisible_by, tensor):
    settings = {**CONFIG, "make_vocab_size_divisible_by": divisible_by * tensor}
    plan = model_plan(model_config(NeoXArgs.from_dict(settings)), vocab_size)
    write_checkpoint(tmp_path / "checkpoints", plan)
    args = NeoXArgs.from_dict({**settings, "load": str(tmp_path / "checkpoints")})
    model, _ = load_model(generation_config(args), vocab_size)
    x = torch.arange(20, 60)[None]
    assert model.readout.weight.shape == (vocab_size, 32) and model(x).shape == (1, 40, vocab_size)
    assert torch.equal(model(x), materialise(plan, seed=1)(x))


def test_a_checkpoint_of_another_vocabulary_is_refused(home):
    args = NeoXArgs.from_dict({**CONFIG, "load": str(home / "checkpoints")})
    with pytest.raises(
        CheckpointError, match=r"embedding.word_embeddings.weight: \[512, 32\] in the checkpoint, \[300"
    ):
        load_model(generation_config(args), 300)


@pytest.mark.parametrize("precision, dtype", [("bfloat16", torch.bfloat16), ("fp16", torch.float16)])
def test_configured_precision(home, precision, dtype):
    model, _ = load(home, precision=precision)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert len(generate_tokens(model, torch.tensor([[65]]), maximum_tokens=40)[0]) == 40


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"mup_output_temp": 1.0}, "multipliers.output_temp"),
        ({"mup_embedding_mult": 2.0}, "multipliers.embedding_mult"),
        ({"mup_base_hidden_size": 8}, "base.hidden_size"),
        ({"use_mup": False}, "factors.attention"),
        ({"norm": "rmsnorm"}, "layers.0.input_layernorm.bias: [32] in the checkpoint, absent in"),
        ({"no_weight_tying": False}, "readout.weight: [512, 32] in the checkpoint, absent in"),
        ({"pos_emb": "learned", "max_position_embeddings": 32}, "position_embeddings.weight: absent in the checkpoint"),
        ({"iteration": 9}, "no checkpoint of step 9"),
    ],
)
def test_another_configuration_is_refused(home, changes, named):
    with pytest.raises(CheckpointError) as caught:
        load(home, **changes)
    assert named in str(caught.value)


# --- text ---


class Script(nn.Module):
    """A fake GPT that produces the given tokens for any input."""

    def __init__(self, said):
        super().__init__()
        self.said = nn.Parameter(torch.tensor(said, dtype=torch.float), requires_grad=False)
        self.layers = nn.ModuleList()
        self.config = SimpleNamespace(pos_emb="none", seq_length=10_000)
        self.turn = 0

    def forward(self, tokens, caches=None):
        token = int(self.said[self.turn % len(self.said)])
        self.turn += 1
        return nn.functional.one_hot(torch.full(tokens.shape, token), 512).float()


def script(said, tokenizer=None, **sampling):
    options = Sampling(**{"maximum_tokens": len(said), "eod": 0, **sampling})
    return Sampler(Script(said), tokenizer or build_tokenizer("CharLevelTokenizer"), options, seed=0)


def test_characters_are_streamed_whole():
    text = "na\u00efve \u4e2d\u6587 \U0001f600!"
    pieces = list(script(list(text.encode())).stream("p"))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) == len(text)


def test_broken_characters_are_replaced():
    broken = [0xF0, 0x9F, 65, 0xC3]
    streamed = "".join(script(broken).stream("p"))
    assert streamed == bytes(broken).decode(errors="replace")
    assert next(script(broken).samples("p")).text == streamed


def test_the_space_after_the_prompt_is_kept():
    """SentencePiece drops a leading space, so text decoded without the prompt would lose it."""

    class Pieces:
        name, vocab_size, eod = "pieces", 512, 0
        tokenize = staticmethod(lambda text: [ord(c) for c in text])
        detokenize = staticmethod(lambda ids: "".join(map(chr, ids)).removeprefix(" "))

    sampler = script([ord(" "), ord("b"), ord(" ")], Pieces())
    assert next(sampler.samples("a")).text == " b "
    assert "".join(sampler.stream("a")) == " b "


def test_eod_ends_the_text_and_is_not_part_of_it():
    sample = next(script([65, 66, 0, 67]).samples("p"))
    assert (sample.text, sample.length, sample.finished) == ("AB", 2, True)
    assert "".join(script([65, 66, 0, 67]).stream("p")) == "AB"
    endless = next(script([65, 66]).samples("p"))
    assert (endless.text, endless.length, endless.finished) == ("AB", 2, False)


def test_a_long_prompt_is_truncated_with_a_warning(home, caplog):
    model, _ = load(home)
    sampler = Sampler(model, build_tokenizer("CharLevelTokenizer"), Sampling(maximum_tokens=3), seed=0)
    cut = next(sampler.samples("x" * 50 + "y" * 32)).text
    assert "82 tokens" in caplog.text and "last 32" in caplog.text
    assert cut == next(sampler.samples("y" * 32)).text


def test_without_an_end_of_document_a_prompt_is_needed():
    class NoEnd:
        name, vocab_size = "no end", 512
        tokenize = staticmethod(lambda text: list(text.encode()))
        detokenize = staticmethod(lambda ids: bytes(ids).decode(errors="replace"))

        @property
        def eod(self):
            raise DataError("vocab-file has no end-of-document token")

    assert next(script([65], NoEnd(), eod=None).samples("p")).text == "A"
    with pytest.raises(DataError, match="end-of-document"):
        next(script([65], NoEnd(), eod=None).samples(""))


def interact(sampler, typed, prompt_end="\n", count=1):
    output = io.StringIO()
    generate_interactively(sampler, typed, prompt_end, count, output)
    return output.getvalue()


def test_interactive_prompts_end_at_the_configured_string():
    class Echo:
        def stream(self, prompt, index, sample):
            yield f"[{index}.{sample} {prompt!r}]"

    assert interact(Echo(), ["a", "", "b"]) == "[0.0 'a']\n\n[1.0 '']\n\n[2.0 'b']\n\n"
    several = interact(Echo(), ["a", "b END", "c", "d"], prompt_end="END", count=2)
    assert several == "[0.0 'a\\nb ']\n[0.1 'a\\nb ']\n\n[1.0 'c\\nd']\n[1.1 'c\\nd']\n\n"
    assert interact(Echo(), ["a", "", "b"], prompt_end="\n\n") == "[0.0 'a']\n\n[1.0 'b']\n\n"


def test_ctrl_c_stops_one_answer():
    class Impatient:
        def stream(self, prompt, index, sample):
            yield prompt
            if prompt == "a":
                raise KeyboardInterrupt

    assert interact(Impatient(), ["a", "b"]) == "a\nb\n\n"


# --- files ---


def test_an_interrupted_run_keeps_the_existing_file(tmp_path):
    class Failing:
        def samples(self, prompt, count, index):
            if index == 1:
                raise RuntimeError("power")
            yield next(script([65]).samples(prompt))

    prompts, output = tmp_path / "prompts", tmp_path / "out"
    prompts.write_text("a\nb\n")
    output.write_text("precious")
    with pytest.raises(RuntimeError, match="power"):
        list(generate_from_file(Failing(), str(prompts), 1, str(output)))
    assert output.read_text() == "precious" and len(list(tmp_path.iterdir())) == 2


def test_invalid_files_raise(tmp_path):
    sampler, binary = script([65]), tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="sample_input_file: .*absent: No such file"):
        list(generate_from_file(sampler, str(tmp_path / "absent"), 1, None))
    with pytest.raises(DataError, match="binary: expected UTF-8"):
        list(generate_from_file(sampler, str(binary), 1, None))
    (tmp_path / "prompts").write_text("a\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="sample_output_file: .*folder: cannot be written"):
        list(generate_from_file(sampler, str(tmp_path / "prompts"), 1, str(tmp_path / "folder")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["binary", "folder", "prompts"]


# --- with the trainer ---


@pytest.mark.slow
def test_train_then_generate(tmp_path):
    def python(*argv):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "text.txt").write_text("abcdefgh " * 4000)
    python(str(ROOT / "prepare_data.py"), "--input", "text.txt", "-t", "byte", "--output-dir", "corpus")
    settings = {
        **CONFIG,
        "train_iters": 60,
        "train_micro_batch_size_per_gpu": 8,
        "init_method_std": 0.05,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
        "data_path": "corpus/text_document",
        "split": "1",
        "eval_iters": 0,
        "save": "checkpoints",
        "log_dir": "run",
        "temperature": 0.0,
    }
    (tmp_path / "model.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    python(str(ROOT / "train.py"), "model.yml")
    assert python(str(ROOT / "generate.py"), "model.yml", "--prompt", "abc") == "abcdefgh abcdef\n"


def test_the_launcher_passes_prompts_on(home):
    """`deepy.py generate.py --prompt` prints what `generate.py --prompt` prints, with several prompts and devices."""
    options = ["model.yml", "--load", "checkpoints", "--prompt", "a b", "--prompt=--x", "--temperature", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def text(*command):
        done = subprocess.run(
            [sys.executable, *command, *options], cwd=home, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone = text(ROOT / "generate.py")
    assert alone.startswith("a b") and "--x" in alone
    assert alone in text(ROOT / "deepy.py", ROOT / "generate.py", "--num-gpus", "2")


def test_only_generation_takes_prompts():
    import deepy

    with pytest.raises(ConfigError, match="command line: only generate.py takes --prompt"):
        deepy.main(["train.py", str(ROOT / "configs" / "19M.yml"), "--prompt", "a"])
