"""eval.py on a checkpoint, compared with the lm-evaluation-harness's own numbers for the same model in transformers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from megatron.checkpointing.integrity import write_bytes, write_manifest, write_torch
from megatron.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import task_evaluation_config
from muneox.commands import eval as eval_command
from tests.model.test_hf_parity import FFN, HEADS, HIDDEN, LAYERS, gpt_neox, randomise

lm_eval = pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 32
END = "<|endoftext|>"
SENTENCES = [
    "the cat sat on the mat and looked at the door",
    "a dog ran over the hill to the old mill",
    "she said that the rain would stop before noon",
    "two ships sailed from the bay to the far north",
    "he reads one book in the morning and one at night",
    "the door of the mill stood open in the rain",
]
WANDB = {"use_wandb": True, "wandb_mode": "offline"}
COMMON = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
TASKS: dict[str, dict[str, Any]] = {
    "endings": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "fewshot_split": "test",
        "num_fewshot": 1,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["o"], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [{"metric": "chrf"}],
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.yml, a checkpoint of step 3, the same model in the format of transformers, and task files."""
    folder = tmp_path_factory.mktemp("eval")
    vocab_size = _write_tokenizer(folder / "hf")
    oracle = _oracle(vocab_size)
    oracle.save_pretrained(folder / "hf")
    step = folder / "checkpoints" / "global_step3"
    step.mkdir(parents=True)
    state = {"module": gpt_neox(oracle.state_dict()), "iteration": 3, "client_state": {"tokens": 96}}
    name = "mp_rank_00_model_states.pt"
    write_manifest(step, 3, {name: write_torch(step / name, state)})
    write_bytes(step.parent / "latest", b"global_step3")
    (folder / "model.yml").write_text(yaml.safe_dump(_settings(folder)), encoding="utf-8")
    docs = [
        {
            "question": text[:20],
            "text": " ".join([text] * 9),
            "choices": [text[20:], SENTENCES[i - 1][20:]],
            "answer": 0,
        }
        for i, text in enumerate(SENTENCES)
    ]
    (folder / "docs.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    for task, body in TASKS.items():
        files = {"data_files": {"test": str(folder / "docs.json")}}
        whole = {"task": task, "dataset_kwargs": files, **COMMON, **body}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return folder


def _write_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer with 280 tokens. Returns the number of its tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def _oracle(vocab_size: int) -> Any:
    torch.manual_seed(0)
    oracle = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=vocab_size,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=FFN,
            max_position_embeddings=LENGTH,
        )
    ).eval()
    randomise(oracle)
    return oracle


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "seq_length": LENGTH,
        "max_position_embeddings": LENGTH,
        "pos_emb": "rotary",
        "rotary_pct": 0.25,
        "gpt_j_residual": True,
        "no_weight_tying": True,
        "tokenizer_type": "HFTokenizer",
        "vocab_file": str(folder / "hf" / "tokenizer.json"),
        "model_parallel_size": 2,  # of training: evaluation holds the whole model in each process
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "train_iters": 3,
        "load": str(folder / "checkpoints"),
    }


def _environment(folder: Path) -> dict[str, str]:
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return {**os.environ, **offline, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _evaluate(home: Path, out: Path, *argv: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT / "eval.py"), str(home / "model.yml"), *argv],
        cwd=out,
        env=_environment(home),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=500,
    )


def _results(out: Path) -> dict[str, Any]:
    (file,) = out.glob("*eval_results_*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


ORACLE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
folder, *tasks = sys.argv[1:]
model = HFLM(pretrained=folder + "/hf", batch_size=1, max_length=%d, device="cpu", dtype="float32")
manager = TaskManager(include_path=folder)
results = simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=1000, log_samples=False)
print("RESULTS" + json.dumps(results["results"]))
"""


@pytest.fixture(scope="module")
def harness_results(home: Path) -> dict[str, dict[str, float]]:
    """The harness's own results for the model of transformers."""
    done = subprocess.run(
        [sys.executable, "-c", ORACLE % LENGTH, str(home), *TASKS],
        cwd=home,
        env=_environment(home),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout.split("RESULTS")[1])
    return found


def _assert_equal(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for task, metrics in expected.items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        assert len(numbers) > 1
        for name, value in numbers.items():
            assert found[task][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (task, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), (str(ROOT / "deepy.py"),)],
    ids=["alone", "torchrun", "deepy.py"],
)
def test_tasks_give_the_numbers_of_the_harness(home, harness_results, tmp_path, launcher):
    files = [str(home / f"{task}.yaml") for task in TASKS]
    done = _evaluate(home, tmp_path / "out", "--eval-tasks", *files, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "not a git repository" not in done.stderr and "Traceback" not in done.stderr
    results = _results(tmp_path / "out")
    _assert_equal(results["tasks"]["results"], harness_results)
    assert results["step"] == 3 and results["tasks"]["n-shot"]["endings"] == 1
    accuracy = harness_results["endings"]["acc,none"]
    assert f"endings/acc {accuracy:.4f}" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_options_of_tasks_reach_the_harness(home, tmp_path):
    options = ("--eval-num-fewshot", "2", "--eval-limit", "3", "--eval-results-prefix", "sub/tiny")
    done = _evaluate(home, tmp_path, "--eval-tasks", str(home / "endings.yaml"), *options)
    assert done.returncode == 0, done.stderr
    results = _results(tmp_path / "sub")
    assert results["tasks"]["n-shot"]["endings"] == 2
    assert results["tasks"]["n-samples"]["endings"]["effective"] == 3
    (file,) = (tmp_path / "sub").iterdir()
    assert file.name.startswith("tiny_eval_results_")


@pytest.mark.parametrize(
    "tasks, words",
    [
        (["no_such_task"], ["eval_tasks", "no_such_task", "lm-eval ls tasks"]),
        (["missing.yaml"], ["eval_tasks", "missing.yaml", "No such file"]),
        (["list.yaml"], ["eval_tasks", "list.yaml", "`task`"]),
        (["broken.yaml"], ["eval_tasks", "broken.yaml"]),
    ],
)
def test_wrong_tasks_are_named(tasks, words, tmp_path, monkeypatch):
    from muneox.evaluation.harness import run_tasks

    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("task: [\n")
    with pytest.raises(ConfigError) as caught:
        run_tasks(None, tasks, None, None, 0)  # type: ignore[arg-type]  # it does not get as far as the model
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.slow
def test_a_task_without_its_data_is_an_error_without_a_traceback(home, tmp_path):
    task = {"task": "gone", "dataset_kwargs": {"data_files": {"test": "gone.json"}}, **COMMON, **TASKS["texts"]}
    (tmp_path / "gone.yaml").write_text(yaml.safe_dump(task))
    done = _evaluate(home, tmp_path, "--eval-tasks", "gone.yaml")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "eval_tasks: gone.yaml: the harness failed" in done.stderr and "gone.json" in done.stderr
    assert not list(tmp_path.glob("*.json"))


def test_perplexity_is_that_of_transformers(home):
    from megatron.text_generation_utils import load_model
    from megatron.tokenizer import build_tokenizer
    from muneox.evaluation.perplexity import perplexity

    config = task_evaluation_config(NeoXArgs.from_dict(_settings(home)))
    tokenizer = build_tokenizer(*config.tokenizer)
    model, step = load_model(config, tokenizer.vocab_size)  # type: ignore[arg-type]  # both have the model's fields
    assert step == 3
    hf = transformers.PreTrainedTokenizerFast.from_pretrained(home / "hf")
    end = hf.eos_token_id
    texts = ["the caf\u00e9 on the hill " * 9, "rain " * 60]
    rows = np.array([[end, *hf.encode(text)][: LENGTH + 1] for text in texts], dtype=np.int64)
    rows[1, 20] = end
    oracle = transformers.GPTNeoXForCausalLM.from_pretrained(home / "hf").eval()
    inputs, labels = torch.tensor(rows[:, :-1]), torch.tensor(rows[:, 1:])
    with torch.no_grad():
        logits = oracle(inputs).logits.log_softmax(-1)
    nats = -logits.gather(-1, labels[..., None])[..., 0].double()
    text = [hf.decode([token for token in row if token != end]) for row in labels.tolist()]
    for masked, kept in ((None, torch.ones_like(labels, dtype=torch.bool)), (end, inputs != end)):
        found = perplexity(model, rows, 2, tokenizer, end, masked, batch=1).results()
        loss = float(nats[kept].mean())
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        if masked is None:
            characters, size = sum(map(len, text)), sum(len(part.encode()) for part in text)
            assert found["char_perplexity"] == pytest.approx(math.exp(float(nats.sum()) / characters), rel=1e-4)
            assert found["bits_per_byte"] == pytest.approx(float(nats.sum()) / math.log(2) / size, rel=1e-5)
            assert size > characters


def test_without_the_harness_the_error_names_the_package(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install.*eval"):
        eval_command.main([str(home / "model.yml")], {"eval_tasks": ["x"]})


@pytest.mark.slow
def test_validation_loss_is_that_of_training_and_joins_the_metrics(tmp_path):
    """Also under two pipeline stages, and in wandb's run of the training."""
    from tests.training.harness import configuration, make_corpus

    corpus = make_corpus(tmp_path / "text_document")
    log = tmp_path / "log"
    settings = configuration(corpus, log, save=str(tmp_path / "checkpoints"), pipe_parallel_size=2, **WANDB)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    environment = _environment(tmp_path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [sys.executable, *launcher, str(ROOT / "train.py"), str(file)], env=environment, check=True, timeout=500
    )
    records = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if "valid/loss" in record][-1]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), str(file)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    after = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    assert after[:-1] == records
    assert after[-1]["step"] == trained["step"]
    trained_in, evaluated_in = sorted(log.glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    assert trained_in.name.rpartition("-")[2] == evaluated_in.name.rpartition("-")[2]  # one run on the server
    (file,) = evaluated_in.glob("*.wandb")
    assert b"eval/valid/loss" in file.read_bytes() and b"eval/step" in file.read_bytes()
    assert after[-1]["eval/valid/loss"] == pytest.approx(trained["valid/loss"], rel=1e-5)
