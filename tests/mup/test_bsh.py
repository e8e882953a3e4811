"""Base-shape files: the reader and writer against PyYAML and against damaged files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mup.bsh import BaseShape, read_bsh, read_comments, write_bsh
from mup.infshape import InfDim, InfShape
from mup.shape import load_base_shapes, save_base_shapes

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20) | st.from_regex(
    r"[a-z_]{1,9}(\.[a-z0-9_]{1,9}){0,4}", fullmatch=True
)
SHAPES = st.dictionaries(NAMES, st.lists(st.none() | st.integers(1, 10**6), max_size=4), min_size=1, max_size=6)


def plain(shapes: dict[str, BaseShape]) -> dict[str, list[int | None]]:
    return {name: shape.base for name, shape in shapes.items()}


@settings(max_examples=50)
@given(SHAPES)
@example(
    {
        "null": [1],
        "true": [None],
        "123": [4],
        "a" * 200 + ".weight": [4, None],
        "#x": [2],
        "- a": [1],
        "a: b": [3],
    }
)
def test_yaml_and_we_read_what_we_write(tmp_path_factory: pytest.TempPathFactory, shapes) -> None:
    path = tmp_path_factory.mktemp("bsh") / "x.bsh"
    save_base_shapes(shapes, path, comments=["layout: tp 2", "two\nlines"])
    assert yaml.safe_load(path.read_text()) == shapes
    assert plain(read_bsh(path)) == shapes
    assert read_comments(path)[-3:] == ["layout: tp 2", "two", "lines"]


@pytest.mark.parametrize("flow", [False, None, True])
@pytest.mark.parametrize("indent", [2, 4, None])
@settings(max_examples=15)
@given(shapes=SHAPES)
@example(shapes={'0"': []})
def test_we_read_what_yaml_dumps(tmp_path_factory: pytest.TempPathFactory, flow, indent, shapes) -> None:
    shapes = {name: shape for name, shape in shapes.items() if name.isascii()} or {"a": [1]}
    path = tmp_path_factory.mktemp("bsh") / "x.bsh"
    path.write_text("# a comment\n" + yaml.dump(shapes, default_flow_style=flow, indent=indent))
    assert plain(read_bsh(path)) == shapes


def test_other_spellings(tmp_path: Path) -> None:
    path = tmp_path / "x.bsh"
    path.write_text(
        "---\n# top\na.weight:  # note\n  - 64\n  - ~\n\nb: [8, Null,\n   16]\n'c d': [ ]\n\"e\": [null,]\n"
        "? long\n: - 4\n  - null\n? flow\n: [3]\nf:\n-\n-   7\n..."
    )
    expected = {
        "a.weight": [64, None],
        "b": [8, None, 16],
        "c d": [],
        "e": [None],
        "long": [4, None],
        "flow": [3],
    }
    assert plain(read_bsh(path)) == expected | {"f": [None, 7]} == yaml.safe_load(path.read_text())


def test_finite_sizes_are_saved_as_comments(tmp_path: Path) -> None:
    save_base_shapes({"w": InfShape([InfDim(8, 32), InfDim(None, 10)])}, tmp_path / "x.bsh")
    assert "- null  # 10\n" in (tmp_path / "x.bsh").read_text()
    loaded = load_base_shapes(tmp_path / "x.bsh")["w"]
    assert loaded == InfShape([InfDim(8, None), InfDim(None, None)]) and loaded[1].finite_base == 10


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a:\n- 64\na:\n- 32\n", 3, "twice"),
        ("{a: [1], a: [2]}", 1, "twice"),
        ("a:\n- 64\nb:\n", 3, "no list"),
        ("a:\n- x\n", 2, "'x'"),
        ("a:\n- 6.5\n", 2, "positive integer"),
        ("a:\n- -3\n", 2, "positive integer"),
        ("a:\n- 0\n", 2, "positive integer"),
        ("a:\n- true\n", 2, "positive integer"),
        ("a: 64\n", 1, "not a list"),
        ("a: [64\n", 1, "broken"),
        ("a: [64, [3]]\n", 1, "broken"),
        ("{a: [64]", 1, "not closed"),
        ("{a: 64}", 1, "cannot read"),
        ("  a:\n  - 1\n", 1, "indentation"),
        ("\ta:\n", 1, "tab"),
        ("- 64\n", 1, "expected"),
        ("hello\n", 1, "expected"),
        ('"a\n- 1', 1, "expected"),
        ('"a\\q":\n- 1', 1, "broken"),
        ("? a\n? b\n", 1, "no value"),
        ("a:\n- 64\n\x00garbage", 3, "expected"),
    ],
)
def test_errors_name_the_file_and_line(tmp_path: Path, text: str, line: int, why: str) -> None:
    path = tmp_path / "broken.bsh"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as error:
        read_bsh(path)
    assert str(path) in str(error.value) and f"line {line}" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"# only comments\n", b"PK\x03\x04\xff\xfe", b"\x80\x02}q\x00."])
def test_not_a_base_shape_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.bsh"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.bsh"):
        read_bsh(path)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_the_reader_raises_only_value_errors(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bsh") / "x.bsh"
    path.write_bytes(content)
    try:
        read_bsh(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bsh"
    write_bsh({"a": BaseShape([4], [None])}, path)
    before = path.read_text()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bsh({"b": BaseShape([5], [None])}, path)
    assert path.read_text() == before and os.listdir(tmp_path) == ["x.bsh"]


def test_empty_mapping(tmp_path: Path) -> None:
    write_bsh({}, tmp_path / "x.bsh")
    assert read_bsh(tmp_path / "x.bsh") == {} == yaml.safe_load((tmp_path / "x.bsh").read_text())
