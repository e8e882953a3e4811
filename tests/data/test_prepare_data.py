"""prepare_data.py: the default corpus, the user's text, up-to-date corpora, and downloads without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import os
import sysconfig
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, trainers

from megatron.data import corpora
from megatron.data.data_utils import build_train_valid_test_datasets, split_documents
from megatron.data.downloads import DOWNLOADS
from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import ConfigError, DataError
from megatron.tokenizer import build_tokenizer
from prepare_data import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of 600 small modules and a broken one, like some tests of the real library."""
    root = tmp_path / "library"
    (root / "site-packages").mkdir(parents=True)
    (root / "site-packages" / "foreign.py").write_text("FOREIGN = 1\n")
    for i in range(600):
        (root / f"module{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n")
    (root / "latin.py").write_bytes("# coding: latin-1\nx = 'ä'\n".encode("latin-1"))
    (root / "broken.py").write_bytes(b"# coding: nonsense\n")
    paths = dict(sysconfig.get_paths(), stdlib=str(root))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return root


@pytest.fixture
def prepare(tmp_path, request):
    """prepare_data.py, on the small library if the test uses it."""
    text = ["--standard-library"] if "library" in request.fixturenames else []

    def run(*flags):
        return main(["-d", str(tmp_path / "data"), "--vocab-size", "300", *text, *map(str, flags)])

    return run


def decoded(folder, prefix="text_document"):
    indexed = IndexedDataset(folder / prefix)
    tokenizer = build_tokenizer("HFTokenizer", folder / "tokenizer.json")
    return [tokenizer.detokenize(indexed[i].tolist()) for i in range(len(indexed))]


def test_the_standard_library_shuffled(tmp_path, library, prepare):
    facts = prepare()
    folder = tmp_path / "data" / "corpus"
    modules = [path.read_text() for path in sorted(library.glob("module*.py"))]
    expected = ["# coding: latin-1\nx = 'ä'\n", *modules]
    documents = decoded(folder)
    assert sorted(documents) == sorted(expected) and documents != expected
    tokenizer, indexed = (
        build_tokenizer("HFTokenizer", folder / "tokenizer.json"),
        IndexedDataset(folder / "text_document"),
    )
    assert facts["append_eod"] and all(indexed[i][-1] == tokenizer.eod for i in range(len(indexed)))
    assert facts == json.loads((folder / "corpus.json").read_text())
    assert facts["vocab_size"] == tokenizer.vocab_size <= 300
    assert sorted(path.name for path in folder.iterdir()) == [
        "corpus.json", "local.yml", "text_document.bin", "text_document.idx", "tokenizer.json",
    ]  # fmt: skip
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


# --- the default corpus ---


def test_default_corpus_is_the_pinned_sympy(tmp_path):
    """The expected sizes are from the wheel's RECORD, the version from the constraints."""
    constraints = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    assert f"sympy=={corpora.DEFAULT_TEXT.version}" in constraints
    record = importlib.metadata.distribution("sympy").files or []
    sources = {str(file): file for file in record if file.parts[0] == "sympy" and file.suffix == ".py"}
    contents = {name.removeprefix("sympy/"): file.read_binary() for name, file in sources.items()}
    facts = main(["-t", "byte", "--output-dir", str(tmp_path)])
    text = facts["request"]["text"]
    assert text["package"] == "sympy" and text["version"] == corpora.DEFAULT_TEXT.version
    assert text["files"] == len(sources) and text["bytes"] == sum(file.size for file in sources.values())
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    assert text["sha256"] == digest.hexdigest()
    written = IndexedDataset(tmp_path / "text_document")
    documents = Counter(bytes(written[i][:-1].tolist()) for i in range(len(written)))
    assert documents == Counter(content for content in contents.values() if content.strip())
    assert json.loads((tmp_path / "corpus.json").read_text()) == facts


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `tiny` with two files, and its expected content."""
    root = tmp_path / "site-packages"
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "b.py").write_bytes(b"B = 2\n")
    (root / "tiny" / "a.py").write_bytes(b"A = 1\n")
    (root / "tiny-1.2.dist-info").mkdir()
    (root / "tiny-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(root))
    sha256 = hashlib.sha256(b"a.py\x006\x00A = 1\nb.py\x006\x00B = 2\n").hexdigest()
    return root / "tiny", corpora.PinnedText("tiny", "1.2", files=2, size=12, sha256=sha256)


def test_an_installed_text_is_read_in_the_order_of_its_names(package):
    folder, expected = package
    source = corpora.installed_text(expected)
    assert source.files == [folder / "a.py", folder / "b.py"]
    assert source.facts == {"package": "tiny", "version": "1.2", "files": 2, "bytes": 12, "sha256": expected.sha256}


def test_another_text_is_refused_with_the_way_out(package):
    folder, expected = package
    way_out = r"pip install tiny==1\.3`, or use another text with `python prepare_data\.py --standard-library`"
    with pytest.raises(DataError, match=rf"text of tiny==1\.3, but tiny 1\.2 is installed: `{way_out}"):
        corpora.installed_text(dataclasses.replace(expected, version="1.3"))
    with pytest.raises(DataError, match="absent==1.2, but absent is not installed: `pip install absent==1.2`"):
        corpora.installed_text(dataclasses.replace(expected, package="absent"))
    (folder / "b.py").write_bytes(b"B = 3\n")
    with pytest.raises(DataError, match="another SHA-256: its text was changed; `pip install --force-reinstall"):
        corpora.installed_text(expected)
    (folder / "b.py").write_bytes(b"B = 2\n")
    (folder / "c.py").write_bytes(b"")
    with pytest.raises(DataError, match="holds 3 source files of 12 bytes, but tiny==1.2 has 2"):
        corpora.installed_text(expected)


# --- output ---


def test_the_facts_match_the_files(tmp_path, library, prepare):
    facts = prepare("--split", "80,15,5")
    folder = tmp_path / "data" / "corpus"
    indexed, documents = IndexedDataset(folder / "text_document"), decoded(folder)
    bounds = split_documents("80,15,5", len(documents))
    for name, first, end in zip(("train", "valid", "test"), bounds, bounds[1:], strict=False):
        part = facts[name]
        assert part["documents"] == end - first
        assert part["bytes"] == sum(len(text.encode()) for text in documents[first:end])
        assert part["tokens"] == sum(len(indexed[i]) for i in range(first, end))
        assert part["bytes_per_token"] == part["bytes"] / part["tokens"]
    train = Counter(t for i in range(bounds[1]) for t in indexed[i].tolist())
    valid = [t for i in range(bounds[1], bounds[2]) for t in indexed[i].tolist()]
    ids = set(indexed.tokens.tolist())
    nats = -sum(math.log((train[t] + 1) / (sum(train.values()) + len(ids))) for t in valid) / len(valid)
    assert facts["unigram_entropy"]["nats_per_token"] == pytest.approx(nats)
    assert facts["unigram_entropy"]["nats_per_byte"] == pytest.approx(nats * len(valid) / facts["valid"]["bytes"])


def test_prepared_corpus_trains_with_the_default_split(tmp_path, library, prepare):
    facts = prepare()
    datasets = build_train_valid_test_datasets(
        data_path=tmp_path / "data/corpus/text_document", seq_length=16, seed=1, num_samples=(100, 10, 5),
        vocab_size=facts["vocab_size"],
    )  # fmt: skip
    assert all(datasets)


def test_an_up_to_date_corpus_is_not_prepared_again(tmp_path, library, prepare, capsys):
    facts = prepare()
    folder = tmp_path / "data" / "corpus"
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert prepare() == facts
    assert "up to date" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.parametrize("change", ["force", "seed", "source", "damage", "missing", "facts"])
def test_a_changed_corpus_is_prepared_again(tmp_path, library, prepare, capsys, change):
    prepare()
    folder = tmp_path / "data" / "corpus"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = []
    if change == "force":
        flags = ["--force"]
    elif change == "seed":
        flags = ["--seed", 2]
    elif change == "source":
        (library / "module3.py").write_text("changed = True\n")
    elif change == "damage":
        (folder / "text_document.bin").write_bytes(before["text_document.bin"][:-2])
    elif change == "missing":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "corpus.json").write_text("{")
    capsys.readouterr()
    prepare(*flags)
    assert "up to date" not in capsys.readouterr().out
    same = {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert same == (change not in ("seed", "source")), "the same request makes the same bytes"


def test_failure_leaves_the_old_corpus(tmp_path, library, prepare, monkeypatch):
    facts = prepare()
    monkeypatch.setattr(
        "muneox.commands.prepare_data.encode_documents", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(DataError, match="corpus: cannot write: No space"):
        prepare("--force")
    monkeypatch.undo()
    folder = tmp_path / "data" / "corpus"
    assert json.loads((folder / "corpus.json").read_text()) == facts and len(list(folder.iterdir())) == 5


def test_corpus_json_never_describes_other_files(tmp_path, library, prepare, monkeypatch):
    prepare()
    folder = tmp_path / "data" / "corpus"

    def only_the_first(source, target):
        if Path(target).parent == folder and Path(target).name == "text_document.idx":
            raise OSError(28, "No space")
        os.rename(source, target)

    monkeypatch.setattr("muneox.commands.prepare_data.put_in_place", only_the_first)
    with pytest.raises(DataError, match="No space"):
        prepare("--force", "--seed", 2)
    assert not (folder / "corpus.json").exists()


def test_a_long_file_is_cut_into_documents_that_can_be_split(tmp_path, prepare):
    text = "".join(f"line {i} of a single long file\n" for i in range(20_000))
    (tmp_path / "book.txt").write_text(text)
    facts = prepare("--input", tmp_path / "book.txt", "-t", "byte", "--output-dir", tmp_path / "mine")
    assert not facts["append_eod"] and facts["test"]["documents"] >= 1 and facts["valid"]["bytes_per_token"] == 1
    indexed = IndexedDataset(tmp_path / "mine" / "text_document")
    pieces = [bytes(indexed[i].tolist()).decode() for i in range(len(indexed))]
    assert sorted("".join(pieces).splitlines()) == sorted(text.splitlines())


def test_binary_files_in_a_folder_are_skipped(tmp_path, prepare):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.md").write_text("some text\n" * 500)
    (folder / "b.png").write_bytes(b"\x89PNG\0\0\xff")
    assert prepare("--input", folder)["bytes"] == 5000
    with pytest.raises(DataError, match="b.png is not UTF-8"):
        prepare("--input", folder / "b.png", "--force")


def test_cut_keeps_every_character():
    for text in ("", "abc", "a\n" * 5000, "x" * 5000, "long " * 900 + "\n" + "y" * 3000):
        pieces = corpora.cut(text, 1000)
        assert "".join(pieces) == text and all(0 < len(piece) <= 1000 for piece in pieces)
    assert all(piece.endswith("\n") for piece in corpora.cut("line\n" * 5000, 999))


def test_named_download(tmp_path, prepare, monkeypatch):
    archive = tmp_path / "enwik8.zip"
    text = "".join(f"<page>{i} of the encyclopedia</page>\n" for i in range(5000))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("enwik8", text)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: open(archive, "rb"))
    facts = prepare("enwik8", "-t", "bpe")
    folder = tmp_path / "data" / "enwik8"
    assert "".join(decoded(folder, "enwik8_text_document")) == text, "in the original order"
    assert facts["request"]["prefix"] == "enwik8_text_document"
    assert not list(folder.glob(".*"))


def test_a_download_without_a_network_names_the_way_out(tmp_path, prepare, monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataError, match=r"cannot download http.*Name or service.*`python prepare_data\.py`"):
        prepare("text8")
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Stands for the network: the content of each file by the end of its address. Records what is asked for."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["some text of pages"], trainer)
    tokenizer.model.save(str(tmp_path), "net")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("enwik8", "".join(f"<page>{i} of the encyclopedia</page>\n" for i in range(5000)))
    lines = b'{"text": "one document"}\n{"text": "another document"}\n'
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as file:
        entry = tarfile.TarInfo("hn/part.jsonl")
        entry.size = len(lines)
        file.addfile(entry, io.BytesIO(lines))
    content = {
        "gpt2-vocab.json": (tmp_path / "net-vocab.json").read_bytes(),
        "gpt2-merges.txt": (tmp_path / "net-merges.txt").read_bytes(),
        "enwik8.zip": archive.getvalue(),
        "hn.tar.gz": tar.getvalue(),
    }
    asked = []

    def urlopen(url, timeout):
        asked.append(url.rpartition("/")[2])
        return io.BytesIO(content[asked[-1]])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_gpt_neox_command_writes_where_its_local_setup_looks(tmp_path, network):
    data = tmp_path / "data"
    main(["-d", str(data)])
    tokenizer = build_tokenizer("GPT2BPETokenizer", data / "gpt2-vocab.json", data / "gpt2-merges.txt")
    indexed = IndexedDataset(data / "enwik8" / "enwik8_text_document")
    text = "".join(tokenizer.detokenize(indexed[i].tolist()) for i in range(len(indexed)))
    assert text == "".join(f"<page>{i} of the encyclopedia</page>\n" for i in range(5000))
    assert network == ["gpt2-vocab.json", "gpt2-merges.txt", "enwik8.zip"]
    main(["-d", str(data)])
    assert len(network) == 3, "what is there is not downloaded again"
    main(["-d", str(data), "-f"])
    assert len(network) == 6


def test_a_large_data_set_is_read_from_its_archive(tmp_path, network, capsys):
    facts = main(["hackernews", "-d", str(tmp_path / "data"), "-t", "CharLevelTokenizer"])
    indexed = IndexedDataset(tmp_path / "data" / "hackernews" / "hackernews_text_document")
    assert [bytes(indexed[i].tolist()) for i in range(len(indexed))] == [b"one document\0", b"another document\0"]
    assert facts["documents"] == 2 and network == ["hn.tar.gz"] and "2 documents" in capsys.readouterr().out


def test_gpt_neox_data_sets_have_their_names_and_folders():
    """Names, and the folders that differ from them, of tools/datasets/corpora.py of GPT-NeoX."""
    names = "enron pile_subset pile github arxiv europarl freelaw nih pubmed books1 books3 hackernews openwebtext2"
    names += " stackexchange ubuntu_irc youtube_subtitles c4 c4_openwebtext enwik8"
    assert set(names.split()) <= set(DOWNLOADS)
    assert {n: d.folder for n, d in DOWNLOADS.items() if d.folder != n} == {"pile_subset": "pile_00"}
    assert [len(DOWNLOADS[name].urls) for name in ("pile", "c4", "c4_openwebtext")] == [30, 1024, 512]
    assert DOWNLOADS["c4"].urls[7].endswith("c4-train.00007-of-01024.json.gz")


@pytest.mark.parametrize(
    "flags, error, message",
    [
        (["pile", "-t", "bpe"], ConfigError, "pile is too large to train a tokenizer here"),
        (["enwik9"], ConfigError, "unknown data set 'enwik9'; expected one of enwik8"),
        (["enwik8", "--input", "x"], ConfigError, "not both"),
        (["enwik8", "--standard-library"], ConfigError, "--standard-library cannot be combined"),
        (["--input", "nowhere"], DataError, "nowhere does not exist"),
        (["--tokenizer", "wordpiece"], ConfigError, "--tokenizer: 'wordpiece'"),
        (["-t", "bpe", "--vocab-size", "100"], ConfigError, "--vocab-size"),
        (["--split", "a"], ConfigError, "split"),
        (["--workers", "0"], ConfigError, "--workers"),
        (["-t", "HFTokenizer", "-v", "nowhere.json"], DataError, "vocab-file: nowhere.json does not exist"),
    ],
)
def test_bad_arguments(prepare, flags, error, message):
    with pytest.raises(error, match=message):
        prepare(*flags)
