"""Tokenizers: round trips, robustness to any ids, streaming, and errors for missing or corrupt files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron.errors import ConfigError, DataError
from megatron.tokenizer import StreamDetokenizer, Tokenizer, build_tokenizer, padded_vocab_size

TEXT = "def naïve(x):\n    return 'straße → 日本 😀', x  # <done>\n" * 20
SPECIAL = ["<|endoftext|>", "<|padding|>"]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """tokenizer.json, and vocab.json with merges.txt, of a small byte-level BPE tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizers")
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    return folder


@pytest.fixture(scope="session", params=["char", "hf", "gpt2", "hf_gpt2"])
def tokenizer(request, files):
    return {
        "char": lambda: build_tokenizer("CharLevelTokenizer"),
        "hf": lambda: build_tokenizer("HFTokenizer", files / "tokenizer.json"),
        "gpt2": lambda: build_tokenizer("GPT2BPETokenizer", files / "vocab.json", files / "merges.txt"),
        "hf_gpt2": lambda: build_tokenizer("HFGPT2Tokenizer", files),
    }[request.param]()


# In HFTokenizer, as in GPT-NeoX, the text of a special token becomes that token. NUL ends a document of bytes.
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40).filter(
    lambda text: not any(token in text * 3 for token in SPECIAL)
)


@given(text=plain_text)
def test_round_trip(tokenizer, text):
    ids = tokenizer.tokenize(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.detokenize(ids) == text


@given(texts=st.lists(plain_text, max_size=4))
def test_a_batch_equals_single_texts(tokenizer, texts):
    assert [list(ids) for ids in tokenizer.tokenize_batch(texts)] == [tokenizer.tokenize(text) for text in texts]


@given(ids=st.lists(st.integers(0, 600), max_size=20))
def test_any_ids_can_be_detokenized(tokenizer, ids):
    assert isinstance(tokenizer.detokenize(ids), str)


@given(text=plain_text)
def test_streaming_yields_the_whole_text_in_whole_characters(tokenizer, text):
    text = text.replace("\ufffd", "") * 3
    stream = StreamDetokenizer(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.tokenize(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_streaming_holds_back_incomplete_characters_but_not_noise():
    stream = StreamDetokenizer(build_tokenizer("CharLevelTokenizer"))
    assert [stream.push(i) for i in "é".encode()] == ["", "é"]
    assert "".join(stream.push(i) for i in [0xFF] * 8 + [65]).endswith("A")
    assert (stream.push(0xC3), stream.flush(), stream.flush()) == ("", "\ufffd", "")


def test_end_of_document(tokenizer, files):
    vocab = json.loads((files / "vocab.json").read_text())
    expected = 0 if tokenizer.name == "CharLevelTokenizer" else vocab["<|endoftext|>"]
    assert tokenizer.eod == expected
    assert tokenizer.detokenize([*tokenizer.tokenize("a"), tokenizer.eod]).startswith("a")
    assert isinstance(tokenizer, Tokenizer)


def test_char_level_is_neox_compatible():
    tokenizer = build_tokenizer("CharLevelTokenizer")
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (512, 0, 1)
    assert tokenizer.tokenize("aé") == [97, 0xC3, 0xA9]
    assert tokenizer.detokenize([97, 0, 300, 98, 0xC3]) == "ab\ufffd"


def test_settings_of_a_fine_tuned_model_do_not_truncate_documents(files, tmp_path):
    content = RustTokenizer.from_file(str(files / "tokenizer.json"))
    content.enable_truncation(4)
    content.enable_padding(length=50)
    content.save(str(tmp_path / "cutting.json"))
    cutting = build_tokenizer("HFTokenizer", tmp_path / "cutting.json")
    assert cutting.tokenize(TEXT) == build_tokenizer("HFTokenizer", files / "tokenizer.json").tokenize(TEXT)


def test_vocabulary_with_gaps_counts_the_largest_id(tmp_path):
    RustTokenizer(models.WordLevel({"a": 0, "b": 9, "[UNK]": 3}, unk_token="[UNK]")).save(str(tmp_path / "t.json"))
    tokenizer = build_tokenizer("HFTokenizer", tmp_path / "t.json")
    assert tokenizer.vocab_size == 10
    with pytest.raises(DataError, match="vocab-file .*t.json has no end-of-document token"):
        _ = tokenizer.eod


@pytest.mark.parametrize(
    "arguments, padded", [((50257, 128), 50304), ((50257, 128, 2), 50432), ((512, 128), 512), ((1, 1), 1)]
)
def test_padded_vocab_size(arguments, padded):
    assert padded_vocab_size(*arguments) == padded


def test_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    tokenizer = build_tokenizer("SPMTokenizer", tmp_path / "m.model")
    text = "def naïve 日本 😀"
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
    assert tokenizer.tokenize_batch([text, "x"]) == [tokenizer.tokenize(text), tokenizer.tokenize("x")]
    stream = StreamDetokenizer(tokenizer)
    ids = tokenizer.tokenize(text * 20)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.detokenize(ids)
    assert 256 < tokenizer.vocab_size <= 300 and tokenizer.eod == 2
    (tmp_path / "bad.model").write_bytes(b"nothing")
    with pytest.raises(DataError, match="vocab-file: .*bad.model is not a SentencePiece model"):
        build_tokenizer("SPMTokenizer", tmp_path / "bad.model")


def test_tiktoken(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 260}  # with a gap
    encoding = tiktoken.Encoding(
        "tiny", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    tokenizer = build_tokenizer("TiktokenTokenizer", "tiny")
    text = "abé <|endoftext|>"
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
    assert tokenizer.tokenize("ab") == [260] and tokenizer.tokenize_batch(["ab"]) == [[260]]
    assert (tokenizer.vocab_size, tokenizer.eod) == (261, 256)
    assert tokenizer.detokenize([260, 256, 258, 0xC3]) == "ab\ufffd"


# --- bad input ---


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("WordPiece",), ConfigError, "tokenizer-type: 'WordPiece' is not one of GPT2BPETokenizer"),
        (("HFTokenizer",), ConfigError, "vocab-file is not set"),
        (("HFTokenizer", "nowhere.json"), DataError, "vocab-file: nowhere.json does not exist"),
        (("GPT2BPETokenizer", "{good}"), ConfigError, "merge-file is not set"),
        (("GPT2BPETokenizer", "{good}", "nowhere.txt"), DataError, "merge-file: nowhere.txt does not exist"),
        (("HFTokenizer", "{bad}"), DataError, "vocab-file: .*bad.json is not a tokenizer.json"),
        (
            ("GPT2BPETokenizer", "{bad}", "{bad}"),
            DataError,
            "vocab-file: .*bad.json is not a GPT-2 vocabulary",
        ),
        (("HFGPT2Tokenizer", "{bad}"), DataError, "vocab-file: .*bad.json is not a folder"),
        (("SPMTokenizer", "nowhere"), DataError, "vocab-file: nowhere does not exist"),
    ],
)
def test_bad_files(files, tmp_path, arguments, error, message):
    (tmp_path / "bad.json").write_bytes((files / "tokenizer.json").read_bytes()[:-100])
    known = {"{bad}": str(tmp_path / "bad.json"), "{good}": str(files / "vocab.json")}
    with pytest.raises(error, match=message):
        build_tokenizer(*(known.get(argument, argument) for argument in arguments))


@pytest.mark.parametrize(
    "kind, module, extra",
    [
        ("HFGPT2Tokenizer", "transformers", "hf"),
        ("SPMTokenizer", "sentencepiece", "sentencepiece"),
        ("TiktokenTokenizer", "tiktoken", "tiktoken"),
    ],
)
def test_missing_library_names_its_extra(monkeypatch, files, kind, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs the package {module}, .*: `pip install -e \.\[{extra}\]`"):
        build_tokenizer(kind, files / "tokenizer.json")


def test_tokenizers_and_datasets_import_no_torch():
    modules = "megatron.tokenizer, megatron.data.data_utils, megatron.data.encoding, megatron.data.documents"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _with_prefix(folder, second):
    model = {"type": "BPE", "continuing_subword_prefix": "##", "unk_token": None, "fuse_unk": False, "dropout": None}
    vocab = {"<|endoftext|>": 0, "a": 1, "##b": 2, "b": 3, "ab": 4}
    model |= {"vocab": vocab, "merges": [["a", second]], "end_of_word_suffix": None, "byte_fallback": False}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    content |= {"pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    file = folder / f"{len(second)}.json"
    file.write_text(json.dumps(content))
    return file


def test_a_merge_without_its_prefix_is_an_error(tmp_path):
    """The library panics on it, and the panic can end the process."""
    assert build_tokenizer("HFTokenizer", _with_prefix(tmp_path, "##b")).tokenize("ab") == [4]
    with pytest.raises(DataError, match=r"merge \['a', 'b'\] needs a second token that starts with .* '##'"):
        build_tokenizer("HFTokenizer", _with_prefix(tmp_path, "b"))
    (tmp_path / "folder").mkdir()
    _with_prefix(tmp_path, "b").rename(tmp_path / "folder" / "tokenizer.json")
    with pytest.raises(DataError, match="needs a second token that starts with"):
        build_tokenizer("HFGPT2Tokenizer", tmp_path / "folder")
