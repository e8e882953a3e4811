"""Read documents from files and folders: plain text, .jsonl and .json, also compressed as .zst or .gz, and in .tar."""

from __future__ import annotations

import codecs
import gzip
import io
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Generic, Literal, TypeVar

from megatron.errors import DataError
from megatron.files import parse_json
from megatron.optional import import_optional

T = TypeVar("T")
TextSplit = Literal["file", "paragraph", "line"]
_JSON_LINES = (".jsonl", ".ndjson")
_ARCHIVES = (".tar", ".tgz")
COMPRESSED = (".zst", ".gz", ".tgz")


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the named files in the given order. A folder stands for all its files, sorted, without hidden ones.

    Raises DataError for a path that does not exist and for a folder without files.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.is_file())
            found = sorted(
                file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not found:
                raise DataError(f"{path}: the folder holds no files")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path} does not exist")
    return files


class Reader(ABC, Generic[T]):
    """Iterates over what the entries of JSON files hold, also in compressed files and archives.

    During iteration, `bytes_read` counts the bytes read out of `total_bytes`, and `skipped` the bad JSON lines that
    `skip_bad_lines` skips. `bad_line_hint` ends the message about a bad line.

    Raises DataError, naming file and line, for text that is not UTF-8, bad JSON, a bad entry or a corrupt archive.
    """

    def __init__(self, files: Sequence[Path], skip_bad_lines: bool = False, bad_line_hint: str = "") -> None:
        self.files, self.skip_bad_lines, self.bad_line_hint = list(files), skip_bad_lines, bad_line_hint
        self.total_bytes = sum(file.stat().st_size for file in self.files)
        self.bytes_read = 0
        self.skipped = 0

    @abstractmethod
    def _document(self, entry: Any, where: str) -> T:
        """What an entry holds. Raises DataError, which begins with `where`."""

    @abstractmethod
    def _text(self, path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[T]:
        """Yield what plain text holds."""

    def _position(self, error: UnicodeDecodeError) -> str:
        """For a message: where in the file text is not UTF-8; empty if the error does not count from its start."""
        return ""

    def _is_empty(self, document: T) -> bool:
        """Whether to skip a document."""
        return False

    def __iter__(self) -> Iterator[T]:
        self.bytes_read = self.skipped = 0
        for path in self.files:
            before = self.bytes_read
            for document in self._read(path):
                if not self._is_empty(document):
                    yield document
            self.bytes_read = before + path.stat().st_size

    def _read(self, path: Path) -> Iterator[T]:
        try:
            with open(path, "rb") as raw, _decompressed(raw, path) as stream:
                yield from self._stream(path, raw, stream)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error.reason}{self._position(error)}") from error
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise DataError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from error

    def _stream(self, path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[T]:
        kind = _suffix(path)
        if kind in _JSON_LINES:
            yield from self._json_lines(path, raw, stream)
        elif kind == ".json":
            yield from self._json(path, stream)
        elif kind in _ARCHIVES:
            yield from self._archive(path, raw, stream)
        else:
            yield from self._text(path, raw, stream)

    def _archive(self, path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[T]:
        """Documents of the files of a tar archive, in their order, without unpacking it."""
        before, checked = self.bytes_read, _TarStream(stream)
        with tarfile.open(fileobj=checked, mode="r|") as archive:
            for entry in archive:
                name = path / entry.name
                member = archive.extractfile(entry) if entry.isfile() and not name.name.startswith(".") else None
                if member is not None:
                    self.bytes_read = before
                    with member, _decompressed(member, name) as content:
                        yield from self._stream(name, raw, content)
        checked.check_end()

    def _json_lines(self, path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[T]:
        before = self.bytes_read
        for number, line in enumerate(stream, start=1):
            self.bytes_read = before + raw.tell()
            if not line.strip():
                continue
            try:
                document = self._document(parse_json(line), f"{path}:{number}")
            except (ValueError, DataError) as error:
                if not self.skip_bad_lines:
                    message = str(error) if isinstance(error, DataError) else f"{path}:{number}: not JSON: {error}"
                    raise DataError(f"{message}{self.bad_line_hint}") from error
                self.skipped += 1
                continue
            yield document

    def _json(self, path: Path, stream: IO[bytes]) -> Iterator[T]:
        try:
            content = parse_json(stream.read())
        except ValueError as error:
            raise DataError(f"{path}: not JSON (use .jsonl for one object per line): {error}") from error
        for number, entry in enumerate(content if isinstance(content, list) else [content], start=1):
            yield self._document(entry, f"{path}: entry {number}")


class DocumentReader(Reader[dict[str, str]]):
    """Iterates over documents. Each is a dict with the text of every key of `keys`; empty documents are skipped.

    A JSON object is a document with its text under `keys`. Plain text has one document per file, paragraph (separated
    by blank lines) or line, and needs exactly one key. A byte-order mark at the start of a file is no text.
    """

    def __init__(
        self,
        files: Sequence[Path],
        keys: Sequence[str] = ("text",),
        text_split: TextSplit = "file",
        skip_bad_lines: bool = False,
        bad_line_hint: str = "",
    ) -> None:
        super().__init__(files, skip_bad_lines, bad_line_hint)
        self.keys, self.text_split = list(keys), text_split

    def _position(self, error: UnicodeDecodeError) -> str:
        return f" at byte {error.start}" if self.text_split == "file" else ""

    def _is_empty(self, document: dict[str, str]) -> bool:
        return all(not text or text.isspace() for text in document.values())

    def _text(self, path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[dict[str, str]]:
        if len(self.keys) != 1:
            raise DataError(f"{path} is plain text, which has no keys {', '.join(self.keys)}: give only one key")
        key, before = self.keys[0], self.bytes_read
        if self.text_split == "file":
            yield {key: stream.read().decode("utf-8-sig")}
            return
        paragraph: list[bytes] = []
        for number, line in enumerate(stream):
            self.bytes_read = before + raw.tell()
            line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            if self.text_split == "line":
                yield {key: line.decode("utf-8").rstrip("\r\n")}
            elif line.strip():
                paragraph.append(line)
            elif paragraph:
                yield {key: b"".join(paragraph).decode("utf-8")}
                paragraph = []
        yield {key: b"".join(paragraph).decode("utf-8")}

    def _document(self, entry: Any, where: str) -> dict[str, str]:
        if isinstance(entry, str) and len(self.keys) == 1:
            return {self.keys[0]: _encodable(entry)}
        if not isinstance(entry, dict):
            raise DataError(f"{where}: not an object with the key {self.keys[0]!r}")
        for key in self.keys:
            if not isinstance(entry.get(key), str):
                problem = "is not text" if key in entry else f"is missing (there are: {', '.join(list(entry)[:10])})"
                raise DataError(f"{where}: the key {key!r} {problem}")
        return {key: _encodable(entry[key]) for key in self.keys}


def _encodable(text: str) -> str:
    """Replace unpaired surrogates, which JSON can contain but UTF-8 cannot, with question marks."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".zst", ".gz"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix in (".gz", ".tgz"):
        return gzip.open(raw)  # type: ignore[return-value]
    if suffix != ".zst":
        return raw
    zstandard = import_optional("zstandard", None, f"{path}: reading .zst", DataError)
    return io.BufferedReader(_ZstdFrames(raw, zstandard), buffer_size=1 << 20)


class _TarStream(io.RawIOBase):
    """Reads a tar archive and checks its end. The standard library takes a truncated archive for a whole one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._last = stream, b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._last = (self._last + data)[-tarfile.BLOCKSIZE :]
        return data

    def check_end(self) -> None:
        """Read the rest. Raises EOFError unless the archive ends with a block of zeros, as every tar archive does."""
        while self.read(1 << 16):
            pass
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise EOFError("corrupt or truncated tar archive: it has no end mark")


class _ZstdFrames(io.RawIOBase):
    """Decompressed bytes of all frames of a .zst file. Unlike the library's reader, it detects a truncated file."""

    def __init__(self, raw: IO[bytes], zstandard: Any) -> None:
        self._raw, self._error = raw, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._raw.read(1 << 17)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("corrupt or truncated .zst file: it ends inside a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._compressed))
            except self._error as error:
                raise EOFError(f"corrupt .zst file: {error}") from error
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
