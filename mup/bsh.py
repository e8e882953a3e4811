"""Base-shape files: YAML mappings from name to a list of base sizes, with `null` for a finite dimension.

This module reads and writes the subset of YAML that `yaml.dump` produces for such a mapping. The library therefore
needs no YAML package, and the original package can read the files and vice versa.
The size of a finite dimension, if known, is a comment next to its `null`. It is used only in reports.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Union

__all__ = ["BaseShape", "read_bsh", "read_comments", "write_bsh"]

StrPath = Union[str, "os.PathLike[str]"]

_HEADER = (
    "Base shapes: one list of sizes per parameter.",
    "A number is the base size of a width (an infinite dimension); null is a finite dimension.",
)
_NULLS = {"", "~", "null", "Null", "NULL"}
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_./]*\Z")
_RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_MAX_BYTES = 1 << 25
_MAX_LINE = 2000  # characters; the longest name that is read
_MAX_SIMPLE_KEY = 128  # in YAML 1.1 a longer key needs the explicit form "? key"


class BaseShape(NamedTuple):
    """Base shape of one parameter.

    base: base sizes; None for a finite dimension. finite: sizes of the finite dimensions if known, otherwise None.
    """

    base: list[int | None]
    finite: list[int | None]


def write_bsh(shapes: Mapping[str, BaseShape], file: StrPath, comments: Sequence[str] = ()) -> None:
    """Write the shapes atomically. comments: lines at the top of the file, without `#`."""
    lines = [f"# {line}".rstrip() for comment in (*_HEADER, *comments) for line in comment.splitlines() or [""]]
    for name in sorted(shapes):
        key = _format_key(name)
        head = f"? {key}\n:" if len(key) >= _MAX_SIMPLE_KEY else f"{key}:"
        if not shapes[name].base:
            lines.append(f"{head} []")
            continue
        lines.append(head)
        for size, finite in zip(*shapes[name], strict=True):
            note = f"  # {finite}" if size is None and finite is not None else ""
            lines.append(f"{'  ' if head[0] == '?' else ''}- {'null' if size is None else size}{note}")
    text = "\n".join(lines) + ("\n" if shapes else "\n{}\n")
    path = Path(file)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates a private file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_comments(file: StrPath) -> list[str]:
    """Return the comment lines at the top of a base-shape file, without `#`."""
    comments = []
    for line in _read_text(file).splitlines():
        if not line.startswith("#"):
            break
        comments.append(line[1:].strip())
    return comments


def _read_text(file: StrPath) -> str:
    """Content of a file. Raises OSError for a named pipe or a device, and ValueError for a file that is too large."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(file))
        if state.st_size > _MAX_BYTES:
            raise ValueError(f"{file}: not a base-shape file: {state.st_size:,} bytes")
        return stream.read().decode("utf-8")


def read_bsh(file: StrPath) -> dict[str, BaseShape]:
    """Read a base-shape file. Raises ValueError, with file and line, if the file has another format."""
    try:
        text = _read_text(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a base-shape file: byte {error.start} is not UTF-8 text") from None
    return _Reader(file, text).read()


def _format_key(name: str) -> str:
    if _PLAIN_KEY.match(name) and name.lower() not in _RESERVED:
        return name
    return json.dumps(name, ensure_ascii=not name.isprintable())


class _Line(NamedTuple):
    number: int
    indent: int
    text: str  # without indent and comment
    comment: str


class _Reader:
    def __init__(self, file: StrPath, text: str) -> None:
        self.file = file
        self.lines = [line for line in self._split(text) if line.text not in ("", "---", "...")]
        self.shapes: dict[str, BaseShape] = {}

    def fail(self, number: int, why: str) -> ValueError:
        return ValueError(f"{self.file}, line {number}: not a base-shape file: {why}")

    def _split(self, text: str) -> Iterator[_Line]:
        for number, raw in enumerate(text.splitlines(), 1):
            code, comment = raw, ""
            for match in re.finditer(r"(?:^|\s)#", raw):
                head = raw[: match.start()]
                if head.count('"') % 2 == 0 and head.count("'") % 2 == 0:  # not inside a quoted key
                    code, comment = head, raw[match.end() :].strip()
                    break
            if "\t" in code[: len(code) - len(code.lstrip())]:
                raise self.fail(number, "the line is indented with a tab")
            yield _Line(number, len(code) - len(code.lstrip(" ")), code.strip(), comment)

    def read(self) -> dict[str, BaseShape]:
        if self.lines and self.lines[0].text.startswith("{"):
            self._flow_mapping()
            return self.shapes
        at = 0
        while at < len(self.lines):
            at = self._entry(at)
        if not self.shapes:
            raise ValueError(f"{self.file}: not a base-shape file: it contains no parameter")
        return self.shapes

    def _entry(self, at: int) -> int:
        """Read one `name: list` that starts at line `at`. Returns the index of the next line."""
        line = self.lines[at]
        if line.indent:
            raise self.fail(line.number, f"unexpected indentation before {line.text[:40]!r}")
        if line.text.startswith("? "):
            name, rest = self._key(line.text[2:].strip(), line.number), None
            at += 1
            if at == len(self.lines) or not self.lines[at].text.startswith(":"):
                raise self.fail(line.number, f"the key {name!r} has no value")
            line = self.lines[at]
            rest = line.text[1:].strip()
        else:
            name, rest = self._split_key(line)
        if name in self.shapes:
            raise self.fail(line.number, f"{name!r} appears twice")
        if rest.startswith("["):
            self.shapes[name], at = self._flow_list(name, rest, at)
            return at
        sizes: list[int | None] = []
        finite: list[int | None] = []
        if rest.startswith("-"):  # ": - 64" after an explicit key
            self._item(line._replace(text=rest), name, sizes, finite)
        elif rest:
            raise self.fail(line.number, f"the value of {name!r} is {rest[:40]!r}, not a list of sizes")
        at += 1
        while at < len(self.lines) and self.lines[at].text.startswith("-"):
            self._item(self.lines[at], name, sizes, finite)
            at += 1
        if not sizes:
            raise self.fail(line.number, f"{name!r} has no list of sizes")
        self.shapes[name] = BaseShape(sizes, finite)
        return at

    def _item(self, line: _Line, name: str, sizes: list[int | None], finite: list[int | None]) -> None:
        size = self._size(line.text[1:].strip(), name, line.number)
        sizes.append(size)
        finite.append(int(line.comment) if size is None and re.fullmatch(r"[1-9][0-9]{0,17}", line.comment) else None)

    def _flow_list(self, name: str, text: str, at: int) -> tuple[BaseShape, int]:
        number = self.lines[at].number
        at += 1
        while "]" not in text and at < len(self.lines):
            text += " " + self.lines[at].text
            at += 1
        if not re.fullmatch(r"\[[^\[\]]*\]", text):
            raise self.fail(number, f"the list of {name!r} is broken: {text[:40]!r}")
        return self._sizes(text[1:-1], name, number), at

    def _flow_mapping(self) -> None:
        text = " ".join(line.text for line in self.lines)
        number = self.lines[0].number
        body = re.fullmatch(r"\{(.*)\}", text)
        if body is None:
            raise self.fail(number, "'{' is not closed")
        entry = re.compile(
            r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"',\[\]{}][^,\[\]{}]*?)\s*:\s*\[([^\[\]]*)\]\s*(?:,|\Z)"""
        )
        rest = body[1].strip()
        while rest:
            match = entry.match(rest)
            if match is None:
                raise self.fail(number, f"cannot read {rest[:40]!r}")
            name = self._key(match[1], number)
            if name in self.shapes:
                raise self.fail(number, f"{name!r} appears twice")
            self.shapes[name] = self._sizes(match[2], name, number)
            rest = rest[match.end() :].strip()

    def _sizes(self, text: str, name: str, number: int) -> BaseShape:
        items = [item.strip() for item in text.split(",")]
        if items[-1] == "":  # [] and the trailing comma
            items.pop()
        sizes = [self._size(item, name, number) for item in items]
        return BaseShape(sizes, [None] * len(sizes))

    def _size(self, text: str, name: str, number: int) -> int | None:
        if text in _NULLS:
            return None
        if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
            raise self.fail(number, f"a size of {name!r} is {text[:40]!r}, expected a positive integer or null")
        return int(text)

    def _split_key(self, line: _Line) -> tuple[str, str]:
        match = re.match(
            r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?:[^\s"'\[\]{}#&*!|>%@`,?:-]|[-?:](?=\S)).*?)\s*:(?:\s+(.*))?\Z""",
            line.text,
        )
        if match is None:
            raise self.fail(line.number, f"expected 'name:' and a list of sizes, found {line.text[:40]!r}")
        return self._key(match[1], line.number), match[2] or ""

    def _key(self, text: str, number: int) -> str:
        if text.startswith("'") and text.endswith("'") and len(text) > 1:
            return text[1:-1].replace("''", "'")
        if text.startswith('"'):
            try:
                return str(json.loads(text))
            except ValueError:
                raise self.fail(number, f"the key {text[:40]} is broken") from None
        return text
