"""The small helpers that everything shares: whole files, optional imports, mappings compared, an error's first line."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from megatron.errors import ConfigError, DataError, first_line
from megatron.files import put_in_place, replacing, write_whole
from megatron.mappings import ABSENT, difference_table, differences, flatten
from megatron.optional import import_optional


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "one")
    write_whole(path, (part for part in (b"t", b"wo")))
    assert path.read_text() == "two" and os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")

    def interrupted() -> object:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted())  # type: ignore[arg-type]
    with pytest.raises(ValueError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["file"]


def test_content_and_name_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    (tmp_path / "new").write_text("x")
    put_in_place(tmp_path / "new", tmp_path / "file")
    assert events == ["sync new", "rename", f"sync {tmp_path.name}"]
    events.clear()
    write_whole(tmp_path / "file", "y")
    assert [event.split()[0] for event in events] == ["sync", "rename", "sync"]


def test_an_optional_package_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_optional("os.path", "any", "this") is os.path
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"^use_wandb needs the package wandb, .*: `pip install -e \.\[wandb\]`, or unset use_wandb$"
    ):
        import_optional("wandb", "wandb", "use_wandb", otherwise="unset use_wandb")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(DataError, match=r"^--ftfy needs the package ftfy, .*: `pip install ftfy`$"):
        import_optional("ftfy", None, "--ftfy", DataError)


def test_nested_mappings_are_flattened() -> None:
    nested = {"a": {"b": 1, "c": {"d": (1, 2)}}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [1, 2], "e": {}, "f": None}


def test_differences_of_mappings() -> None:
    first = {"same": 1, "b": {"x": 1, "list": [1]}, "gone": None}
    second = {"b": {"x": 2, "list": (1,)}, "same": 1.0, "a": "new"}
    found = differences(first, second)
    assert found == [("b.x", 1, 2), ("gone", None, ABSENT), ("a", ABSENT, "new")]
    assert difference_table(found, ("name", "saved", "now")).splitlines() == [
        "  name  saved     now",
        "  a     (absent)  'new'",
        "  b.x   1         2",
        "  gone  None      (absent)",
    ]
    many = differences({str(i): i for i in range(50)}, {})
    assert difference_table(many, ("name", "saved", "now")).splitlines()[-1] == "  ... and 10 more"


def test_first_lines_of_errors() -> None:
    assert first_line(ValueError("\none\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
