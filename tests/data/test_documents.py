"""Reading text: every format gives the same documents, and errors name file and line."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
import zstandard

from megatron.data.documents import DocumentReader, find_files
from megatron.errors import DataError

TEXTS = ["one", "zwei\nZeilen ä", "三"]


def read(*files, **options):
    return [document["text"] for document in DocumentReader(list(files), **options)]


def json_lines(texts=TEXTS):
    return "".join(json.dumps({"text": text, "meta": 1}) + "\n" for text in texts).encode()


FORMATS = {
    "x.jsonl": json_lines(),
    "x.ndjson": json_lines(),
    "x.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "strings.json": json.dumps(TEXTS).encode(),
    "x.jsonl.gz": gzip.compress(json_lines()),
    "x.jsonl.zst": zstandard.compress(json_lines()),
    "frames.jsonl.zst": b"".join(zstandard.compress(json_lines([text])) for text in TEXTS),
    "x.json.zst": zstandard.compress(json.dumps([{"text": text} for text in TEXTS]).encode()),
    "blank.jsonl": b"\n" + json_lines() + b"\n\n",
}


def archive(mode):
    """A tar file of a compressed file, a folder and a hidden file."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as file:
        for name, content in (("a/.hidden", b"no text"), ("a/x.jsonl.zst", FORMATS["x.jsonl.zst"])):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    return written.getvalue()


FORMATS |= {
    "x.tar": archive("w"),
    "x.jsonl.zst.tar": archive("w"),
    "x.tar.gz": archive("w:gz"),
    "x.tgz": archive("w:gz"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FORMATS[name])
    reader = DocumentReader([path])
    assert [document["text"] for document in reader] == TEXTS
    assert reader.bytes_read == reader.total_bytes == path.stat().st_size


def test_large_zst_of_several_frames(tmp_path):
    texts = [f"{i} " * 50 for i in range(20_000)]
    half = len(texts) // 2
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(json_lines(part)) for part in (texts[:half], texts[half:])))
    assert read(path) == texts


@pytest.mark.parametrize(
    "split, expected",
    [
        ("file", ["a\nb\n\n  \nc\n\n"]),
        ("paragraph", ["a\nb\n", "c\n"]),
        ("line", ["a", "b", "c"]),
    ],
)
def test_plain_text(tmp_path, split, expected):
    path = tmp_path / "x.txt"
    path.write_text("a\nb\n\n  \nc\n\n")
    assert read(path, text_split=split) == expected


def test_empty_documents_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("  \n")
    (tmp_path / "b.jsonl").write_bytes(json_lines(["", "x", " "]))
    assert read(*find_files([tmp_path])) == ["x"]


def test_several_keys(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    assert list(DocumentReader([path], ["question", "answer"])) == [{"question": "q", "answer": "a"}]
    (tmp_path / "x.txt").write_text("plain")
    with pytest.raises(DataError, match="x.txt is plain text, which has no keys question, answer"):
        list(DocumentReader([tmp_path / "x.txt"], ["question", "answer"]))


def test_an_unpaired_surrogate_is_replaced(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n')
    assert read(path) == ["a?b"]


def test_find_files(tmp_path):
    for name in ("b.txt", "sub/a.txt", ".hidden", ".git/x", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files([tmp_path / "b.txt", tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in found] == ["b.txt", "a.txt", "b.txt", "sub/a.txt"]
    (tmp_path / "none").mkdir()
    for name, message in (("nowhere", "nowhere does not exist"), ("none", "holds no files")):
        with pytest.raises(DataError, match=message):
            find_files([tmp_path / name])


BAD = {
    "line.jsonl": (json_lines()[:-3], r"line\.jsonl:3: not JSON"),
    "key.jsonl": (
        b'{"text": "x"}\n{"txt": "y"}\n',
        r"key\.jsonl:2: the key 'text' is missing \(there are: txt\)",
    ),
    "type.jsonl": (b'{"text": 5}\n', r"type\.jsonl:1: the key 'text' is not text"),
    "list.jsonl": (b"[1]\n", r"list\.jsonl:1: not an object"),
    "bytes.jsonl": (b'{"text": "\xff"}\n', r"bytes\.jsonl:1: not JSON"),
    "x.json": (b'{"text": "a"}\n{"text": "b"}', r"x\.json: not JSON \(use \.jsonl for one object per line\)"),
    "latin.txt": ("ä".encode("latin-1") + b"bc", r"latin\.txt is not UTF-8 text: .* at byte 0"),
    "cut.jsonl.zst": (FORMATS["x.jsonl.zst"][:-5], r"cut\.jsonl\.zst: .*truncated"),
    "between.jsonl.zst": (FORMATS["frames.jsonl.zst"] + b"garbage", r"between\.jsonl\.zst: .*corrupt"),
    "noise.jsonl.zst": (b"no zstd at all", r"noise\.jsonl\.zst: .*corrupt"),
    "cut.jsonl.gz": (FORMATS["x.jsonl.gz"][:-5], r"cut\.jsonl\.gz: cannot read"),
    "cut.tar": (FORMATS["x.tar"][:1100], r"cut\.tar: cannot read: .*truncated"),
    "noise.tar.gz": (gzip.compress(b"no archive" * 100), r"noise\.tar\.gz: cannot read"),
    "noise.txt.gz": (b"no gzip", r"noise\.txt\.gz: cannot read"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_of_a_bad_file_names_the_place(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_bad_lines_are_skipped_on_request(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n{"other": 1}\n{"text": "b"}\n')
    reader = DocumentReader([path], skip_bad_lines=True)
    assert [document["text"] for document in reader] == ["a", "b"]
    assert reader.skipped == 2
