"""Labels of fine-tuning data: masks before an answer, and conversations rendered by a chat template."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.labels import label_chat
from megatron.errors import ConfigError, DataError
from muneox.commands import preprocess_data_with_chat_template as with_chat_template
from muneox.commands import preprocess_data_with_mask as with_mask

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
# Tokens of the word-level tokenizer below.
WORDS = {"<e>": 0, "user": 1, "assistant": 2, ":": 3, "hi": 4, "yes": 5, "no": 6, ";": 7}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} ; {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
CHAT = [("user", "hi"), ("assistant", "yes"), ("user", "hi hi"), ("assistant", "no")]


def documents(prefix):
    dataset = IndexedDataset(prefix)
    return [dataset[index].tolist() for index in range(len(dataset))]


def mask(tmp_path, texts, *flags):
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    required = ["--input", str(source), "--output-prefix", str(tmp_path / "out")]
    return with_mask.main([*required, "--tokenizer-type", "CharLevelTokenizer", *flags])


def test_labels_count_after_the_first_occurrence(tmp_path, capsys):
    """A character is its byte in this tokenizer: `A:` is 65, 58. Overlapping starts, a second occurrence, none."""
    mask(tmp_path, ["Q?AA:xA:y", "no answer", "A:"], "--mask-before-token", "65,58", "--append-eod")
    texts, labels = documents(tmp_path / "out_text_document"), documents(tmp_path / "out_label_document")
    end = [texts[0][-1]]
    assert texts == [[*b"Q?AA:xA:y", *end], [*b"no answer", *end], [*b"A:", *end]]
    assert labels == [[-100] * 5 + [*b"xA:y", *end], texts[1], [-100, -100, *end]]
    assert "1 of 3 documents lack these tokens" in capsys.readouterr().out


def test_without_a_pattern_it_only_tokenizes(tmp_path):
    mask(tmp_path, ["a"])
    assert documents(tmp_path / "out_text_document") == [[97]]
    assert not (tmp_path / "out_label_document.bin").exists()


def test_mistakes_of_the_mask_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="--mask-before-token: expected token ids, separated by commas, got 'A:'"):
        mask(tmp_path, ["a"], "--mask-before-token", "A:")
    with pytest.raises(ConfigError, match="--jsonl-keys: with --mask-before-token only text"):
        mask(tmp_path, ["a"], "--mask-before-token", "1", "--jsonl-keys", "question")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers", reason="pip install -e .[hf]")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<e>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    return folder


def chat(tmp_path, tokenizer, *flags, turns=CHAT):
    source = tmp_path / "in.jsonl"
    entry = {"conversation": [{"role": role, "content": content} for role, content in turns]}
    source.write_text(json.dumps(entry) + "\n")
    required = ["--input", str(source), "--output-prefix", str(tmp_path / "out"), "--tokenizer-path", str(tokenizer)]
    assert with_chat_template.main([*required, *flags]) == 0
    return documents(tmp_path / "out_conversation_document")[0]


def labels_of(tmp_path):
    return documents(tmp_path / "out_conversation_label_document")[0]


X = -100
TOKENS = [1, 3, 4, 7, 2, 3, 5, 7, 1, 3, 4, 4, 7, 2, 3, 6, 7, 0]


def test_turns_of_the_assistant_count(tmp_path, tokenizer):
    """The header `assistant :` is given to the model, so it does not count."""
    assert chat(tmp_path, tokenizer) == TOKENS
    assert labels_of(tmp_path) == [X, X, X, X, X, X, 5, 7, X, X, X, X, X, X, X, 6, 7, 0]


def test_only_the_last_turn_counts(tmp_path, tokenizer):
    assert chat(tmp_path, tokenizer, "--only-last") == TOKENS
    assert labels_of(tmp_path) == [X] * 15 + [6, 7, 0]


def test_the_role_can_be_another(tmp_path, tokenizer):
    """The last turn is not the user's, so the end does not count; the template has no header for the first turn."""
    assert chat(tmp_path, tokenizer, "--generation-role", "user", turns=CHAT[:2])[:4] == [1, 3, 4, 7]
    assert labels_of(tmp_path)[:4] == [1, 3, 4, 7] and set(labels_of(tmp_path)[4:]) == {X}


def test_without_a_mask_there_are_no_labels(tmp_path, tokenizer):
    assert chat(tmp_path, tokenizer, "--no-mask") == TOKENS[:-1]
    assert not (tmp_path / "out_conversation_label_document.bin").exists()


def test_a_template_that_rewrites_earlier_turns_is_an_error():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="renders the turns before turn 2 differently"):
        label_chat(turns, lambda chat, prompt: [len(chat)] * len(chat), role="assistant", end=None)


def test_mistakes_of_the_input_are_one_sentence(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"in\.jsonl:1: expected a list of turns with role and content under the key"):
        chat(tmp_path, tokenizer, "--jsonl-keys", "messages")
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(ConfigError, match="reward models are not supported"):
        chat(tmp_path, tokenizer, "--for-rm")
    with pytest.raises(ConfigError, match="--tokenizer-path: "):
        chat(tmp_path, tmp_path / "absent")


def test_several_processes_and_compressed_files_give_the_same_tokens(tmp_path, tokenizer):
    """More conversations than one batch, of different lengths, in .jsonl and in .json.gz with a byte-order mark."""
    entries = [
        {"conversation": [{"role": role, "content": " ".join(["hi"] * (n % 7))} for role, _ in CHAT[: 2 + n % 3]]}
        for n in range(450)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries[:300]))
    with gzip.open(tmp_path / "b.json.gz", "wb") as file:
        file.write(json.dumps(entries[300:]).encode("utf-8-sig"))
    found = []
    for workers in ("1", "2"):
        out = tmp_path / f"out{workers}"
        files = ["--input", f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.json.gz'}", "--output-prefix", str(out)]
        assert with_chat_template.main([*files, "--tokenizer-path", str(tokenizer), "--workers", workers]) == 0
        found.append([documents(f"{out}_conversation{part}_document") for part in ("", "_label")])
    assert found[0] == found[1] and len(found[0][0]) == 450
    assert [len(text) for text in found[0][0]] == [len(label) for label in found[0][1]]
    assert found[0][0][1][:3] == [1, 3, 4]


def test_a_bad_conversation_is_named_by_a_worker_too(tmp_path, tokenizer):
    (tmp_path / "in.jsonl").write_text('{"conversation": [{"role": "user", "content": "hi"}]}\n{"conversation": []}\n')
    for workers in ("1", "2"):
        with pytest.raises(DataError, match=r"in\.jsonl:2: expected a list of turns"):
            with_chat_template.main(
                [
                    *("--input", str(tmp_path / "in.jsonl"), "--output-prefix", str(tmp_path / "out")),
                    *("--tokenizer-path", str(tokenizer), "--workers", workers),
                ]
            )
    (tmp_path / "in.txt").write_text("hi")
    with pytest.raises(DataError, match=r"in\.txt: conversations are read from \.jsonl and \.json"):
        with_chat_template.main(
            [
                *("--input", str(tmp_path / "in.txt"), "--output-prefix", str(tmp_path / "out")),
                *("--tokenizer-path", str(tokenizer)),
            ]
        )
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["preprocess_data_with_mask", "preprocess_data_with_chat_template"])
def test_the_scripts(name):
    script = ROOT / "tools" / "datasets" / f"{name}.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--output-prefix" in done.stdout
