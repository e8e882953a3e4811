"""tools/datasets/preprocess_data.py: NeoX's flags and file names, equal output for any number of workers, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from megatron.data import encoding
from megatron.data.indexed_dataset import IndexedDataset
from megatron.errors import ConfigError, DataError
from muneox.commands.preprocess_data import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"text {i} ä" * (i % 7 + 1), "summary": f"s{i}"}) for i in range(50)]
    path.write_text("\n".join(lines))
    return path


def run(source, prefix, *flags):
    required = [
        "--input",
        str(source),
        "--output-prefix",
        str(prefix),
        "--tokenizer-type",
        "CharLevelTokenizer",
    ]
    return main([*required, *flags])


def text_of(prefix, eod=False):
    indexed = IndexedDataset(prefix)
    return [bytes(indexed[i].tolist()[: -1 if eod else None]).decode() for i in range(len(indexed))]


def test_the_output_has_neox_names_and_content(tmp_path, jsonl, capsys):
    stats = run(jsonl, tmp_path / "out", "--append-eod")
    indexed = IndexedDataset(tmp_path / "out_text_document")
    expected = [json.loads(line)["text"] for line in jsonl.read_text().splitlines()]
    assert text_of(tmp_path / "out_text_document", eod=True) == expected
    assert all(indexed[i][-1] == 0 for i in range(50)) and indexed.dtype == "u2"
    assert indexed.doc_idx.tolist() == list(range(51))
    assert stats.documents == 50 and stats.tokens == {"text": indexed.tokens.size}
    assert stats.text_bytes == indexed.tokens.size - 50
    output = capsys.readouterr().out
    assert "50 documents" in output and "MB/s" in output and "out_text_document.bin" in output


def test_a_file_for_every_key(tmp_path, jsonl):
    run(jsonl, tmp_path / "out", "--jsonl-keys", "text", "summary")
    assert text_of(tmp_path / "out_summary_document") == [f"s{i}" for i in range(50)]
    assert len(text_of(tmp_path / "out_text_document")) == 50


def test_files_and_folders_in_the_given_order(tmp_path, jsonl):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("second")
    (folder / "a.txt").write_text("first\n\nand a half")
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "third"}\n'))
    run(f"{folder},{jsonl}", tmp_path / "out", "--split-text", "paragraph")
    assert text_of(tmp_path / "out_text_document")[:5] == [
        "first\n",
        "and a half",
        "second",
        "third",
        "text 0 ä",
    ]


def test_output_does_not_depend_on_the_number_of_workers(tmp_path, jsonl, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 3)  # many batches, some in flight while others are done
    run(jsonl, tmp_path / "one")
    run(jsonl, tmp_path / "three", "--workers", "3")
    for suffix in (".bin", ".idx"):
        one, three = (tmp_path / f"{name}_text_document{suffix}" for name in ("one", "three"))
        assert one.read_bytes() == three.read_bytes()


def test_the_script_runs_by_its_path_from_any_folder(tmp_path, jsonl):
    script = ROOT / "tools/datasets/preprocess_data.py"
    flags = ["--output-prefix", "out", "--tokenizer-type", "CharLevelTokenizer"]
    done = subprocess.run([sys.executable, script, "--input", jsonl, *flags], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(text_of(tmp_path / "out_text_document")) == 50
    done = subprocess.run(
        [sys.executable, script, "--input", "nowhere", *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "error: nowhere does not exist\n")


@pytest.mark.parametrize(
    "flags, error, message",
    [
        (["--jsonl-keys", "body"], DataError, r"in.jsonl:1: the key 'body' is missing"),
        (["--workers", "0"], ConfigError, "--workers"),
        (["--ftfy"], DataError, "ftfy"),
    ],
)
def test_bad_flags(tmp_path, jsonl, monkeypatch, flags, error, message):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(error, match=message):
        run(jsonl, tmp_path / "out", *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bad_line_leaves_no_output_and_keeps_older_files(tmp_path, jsonl, workers):
    run(jsonl, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = tmp_path / "in.jsonl"
    bad.write_text(jsonl.read_text() + "\n{")
    with pytest.raises(DataError, match=r"in\.jsonl:51: not JSON"):
        run(bad, tmp_path / "out", "--workers", workers)
    bad.write_bytes(before["in.jsonl"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bad_lines_can_be_skipped(tmp_path, jsonl, capsys):
    jsonl.write_text(jsonl.read_text() + "\n{")
    assert run(jsonl, tmp_path / "out", "--skip-bad-lines").documents == 50
    assert "skipped 1 bad lines" in capsys.readouterr().out


def test_input_without_text(tmp_path):
    (tmp_path / "in.txt").write_text(" \n")
    with pytest.raises(DataError, match="no documents"):
        run(tmp_path / "in.txt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_interruption_leaves_no_output(tmp_path, jsonl, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding.IndexedDatasetBuilder, "add_documents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(jsonl, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_dead_worker_is_reported(tmp_path, jsonl, monkeypatch):
    """A tokenizer that cannot be built in the worker (its file was deleted) must not cause a hang or leave files."""
    vocab = tmp_path / "vocab.json"
    vocab.write_text("{}")
    spec = encoding.TokenizerSpec("HFTokenizer", str(vocab))
    monkeypatch.setattr(encoding.TokenizerSpec, "build", lambda self: encoding.build_tokenizer("CharLevelTokenizer"))
    documents = ({"text": "x"} for _ in range(10))
    with pytest.raises(DataError, match="tokenizer process died"):
        encoding.encode_documents(documents, {"text": tmp_path / "out"}, spec, workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "vocab.json"]
