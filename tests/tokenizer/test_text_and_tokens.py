"""Long texts have the tokens of the whole, characters without a token are counted, and a trained vocabulary has all."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from megatron.data.encoding import TokenizerSpec, encode_documents
from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import ConfigError, DataError
from megatron.tokenizer import build_tokenizer, train_tokenizer
from megatron.tokenizer.long_text import pieces, token_ids
from muneox.commands import preprocess_data
from tests.test_packaging import ROOT

WORDS = "the law of scale, don't you  see:\tnaïve\n\n  it's 12345 of\nthem.\n日本 😀 (a) == b\n"


def metaspace(folder):
    """A tokenizer in the style of SentencePiece, which puts a space before the text."""
    tokenizer = RustTokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"]))
    tokenizer.save(str(folder / "metaspace.json"))
    return build_tokenizer("HFTokenizer", folder / "metaspace.json")


def byte_level(folder):
    train_tokenizer.train_tokenizer([WORDS * 3], 330, folder / "bytes.json")
    return build_tokenizer("HFTokenizer", folder / "bytes.json")


@pytest.fixture(params=["bytes", "byte_level", "metaspace"])
def tokenizer(request, tmp_path):
    if request.param == "bytes":
        return build_tokenizer("CharLevelTokenizer")
    return {"byte_level": byte_level, "metaspace": metaspace}[request.param](tmp_path)


def test_a_text_in_pieces_has_the_tokens_of_the_whole(tokenizer):
    generator = np.random.default_rng(0)
    text = "".join(WORDS[i : i + 7] for i in generator.integers(0, len(WORDS) - 7, 4000))
    cut = list(pieces(tokenizer, text, 300))
    assert "".join(cut) == text and len(cut) > 20
    assert [i for piece in cut for i in tokenizer.tokenize(piece)] == tokenizer.tokenize(text)
    assert token_ids(tokenizer, text).tolist() == tokenizer.tokenize(text)


def test_a_text_without_places_stays_whole(tokenizer):
    assert list(pieces(tokenizer, "x" * 5000, 100)) == ["x" * 5000]


def test_a_place_that_changes_the_tokens_is_not_used(tmp_path):
    """This vocabulary has tokens across spaces, so that few places between words are between tokens."""
    model = models.BPE({"a": 0, " ": 1, "b": 2, "a ": 3, "a b": 4}, [("a", " "), ("a ", "b")])
    RustTokenizer(model).save(str(tmp_path / "t.json"))
    tokenizer = build_tokenizer("HFTokenizer", tmp_path / "t.json")
    text = "a b" * 500
    assert tokenizer.tokenize(text) == [4] * 500 and list(pieces(tokenizer, text, 50)) == [text]


def encode(tmp_path, spec, texts, workers=1):
    documents = ({"text": text} for text in texts)
    return encode_documents(documents, {"text": tmp_path / "out"}, spec, append_eod=True, workers=workers)


@pytest.fixture
def ascii_only(tmp_path):
    """A byte-level vocabulary of the bytes that occur in its training text, as GPT-NeoX's script trains them."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["abc def"], trainers.BpeTrainer(vocab_size=50, special_tokens=["<|endoftext|>"]))
    tokenizer.save(str(tmp_path / "ascii.json"))
    return TokenizerSpec("HFTokenizer", str(tmp_path / "ascii.json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_characters_without_a_token_are_counted(tmp_path, ascii_only, workers):
    stats = encode(tmp_path, ascii_only, ["abc é zé", "def", "éé"], workers)
    assert stats.dropped == {"é": 4, "z": 1} and stats.without_tokens == 1 and stats.unknown == 0
    [dropped, without] = stats.losses()
    assert "5 characters have no token" in dropped and "'é' (4), 'z' (1)" in dropped and "1 texts" in without
    assert len(IndexedDataset(tmp_path / "out")[2]) == 1  # only the end-of-document token


def test_unknown_tokens_are_counted(tmp_path):
    tokenizer = RustTokenizer(models.WordLevel({"a": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    stats = encode(tmp_path, TokenizerSpec("HFTokenizer", str(tmp_path / "words.json")), ["a b a", "c"])
    assert stats.unknown == 2 and not stats.dropped and stats.losses()[0].startswith("2 tokens are the unknown")


def test_a_vocabulary_of_all_bytes_loses_nothing(tmp_path):
    byte_level(tmp_path)
    stats = encode(tmp_path, TokenizerSpec("HFTokenizer", str(tmp_path / "bytes.json")), ["Ωé\u0000z", " \n"])
    assert stats.losses() == []


def test_a_normalizer_that_strips_text_is_reported(tmp_path):
    tokenizer = RustTokenizer.from_str(json.dumps(json.loads(train_tokenizer.train_tokenizer(["ab"], 300).to_str())))
    tokenizer.normalizer = normalizers.Replace("é", "")
    tokenizer.save(str(tmp_path / "t.json"))
    assert encode(tmp_path, TokenizerSpec("HFTokenizer", str(tmp_path / "t.json")), ["aé"]).dropped == {"é": 1}


def test_preprocessing_warns(tmp_path, ascii_only, capsys):
    (tmp_path / "in.txt").write_text("abc é")
    arguments = ["--input", str(tmp_path / "in.txt"), "--output-prefix", str(tmp_path / "o"), "--tokenizer-type"]
    preprocess_data.main([*arguments, "HFTokenizer", "--vocab", ascii_only.vocab_file])
    assert "warning: 1 characters have no token and are missing from the data: 'é' (1)" in capsys.readouterr().err


def test_training_a_tokenizer_by_its_script(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text(json.dumps({"text": WORDS * 20}) + "\n")
    script = str(ROOT / "tools/datasets/train_tokenizer.py")
    options = ["--json_input_dir", "texts", "--tokenizer_output_path", "out/t.json", "--tokenizer_type", "BPE"]
    done = subprocess.run(
        [sys.executable, script, *options, "-v", "300"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and "out/t.json: 300 tokens" in done.stdout, done.stderr
    tokenizer = build_tokenizer("HFTokenizer", tmp_path / "out" / "t.json")
    assert tokenizer.detokenize(tokenizer.tokenize("Ω " + WORDS)) == "Ω " + WORDS and tokenizer.eod == 0


def test_training_without_an_output_writes_nothing(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(WORDS)
    arguments = ["--json_input_dir", str(tmp_path / "a.txt"), "--tokenizer_output_path", ""]
    train_tokenizer.main(train_tokenizer.parse_args(arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and capsys.readouterr().out == ""


def test_training_a_tokenizer_refuses_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="258 .* not 100"):
        train_tokenizer.train_tokenizer([WORDS], 100)
    with pytest.raises(DataError, match="nowhere does not exist"):
        train_tokenizer.main(
            train_tokenizer.parse_args(["--json_input_dir", "nowhere", "--tokenizer_output_path", "t"])
        )
