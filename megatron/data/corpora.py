"""Sources of the text of a corpus: sympy's source code, the standard library's, local files, or a named download."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sysconfig
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from megatron.data.documents import COMPRESSED, DocumentReader, find_files
from megatron.data.downloads import fetch, known
from megatron.errors import DataError

# Fewer documents are cut into pieces: `split` divides by documents, and 0.1 % of them should be at least one.
MIN_DOCUMENTS = 500
_PIECES, _MIN_PIECE = 1000, 1024


@dataclass(frozen=True)
class PinnedText:
    """Source text of one version of a package: number of files, total size in bytes, and SHA-256 by `_measure`."""

    package: str
    version: str
    files: int
    size: int
    sha256: str


# torch needs sympy, so it is always installed. The version is that of requirements/constraints.txt.
DEFAULT_TEXT = PinnedText(
    "sympy",
    "1.14.0",
    files=1532,
    size=26_168_818,
    sha256="983524a04f09c75f3fea9dfb5bc9c94f1b2faf4f5f7afbd90d2ead7477ed1d93",
)


@dataclass(frozen=True)
class Source:
    """The files of a corpus.

    shuffle: False if the standard split into train and valid depends on the order of the text. facts: version, size
    and SHA-256 of a text that is the same on every machine.
    """

    name: str
    description: str
    files: list[Path]
    root: Path
    shuffle: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Digest that changes when a file is added, removed or modified."""
        if self.facts:
            return str(self.facts["sha256"])
        digest = hashlib.sha256()
        for file in self.files:
            stat = file.stat()
            digest.update(f"{file.relative_to(self.root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def installed_text(expected: PinnedText = DEFAULT_TEXT) -> Source:
    """Source text of an installed package with its tests, in the order of file names, without a download.

    Raises DataError unless the package is installed in the expected version with the expected content.
    """
    package, pin = expected.package, f"{expected.package}=={expected.version}"
    remedy = f"`pip install {pin}`, or use another text with `python prepare_data.py --standard-library`"
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"the default corpus is the source text of {pin}, but {package} is not installed: {remedy}"
        ) from None
    if distribution.version != expected.version:
        raise DataError(
            f"the default corpus is the source text of {pin}, but {package} {distribution.version} is installed: "
            f"{remedy}"
        )
    root = Path(str(distribution.locate_file(package)))
    files = sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix())
    size, sha256 = _measure(files, root)
    if (len(files), size, sha256) != (expected.files, expected.size, expected.sha256):
        raise DataError(
            f"{root} holds {len(files):,} source files of {size:,} bytes, but {pin} has {expected.files:,} of "
            f"{expected.size:,} and another SHA-256: its text was changed; `pip install --force-reinstall {pin}`, or "
            "use another text with `python prepare_data.py --standard-library`"
        )
    facts = {"package": package, "version": expected.version, "files": len(files), "bytes": size, "sha256": sha256}
    return Source("corpus", f"source text of {package} {expected.version}", files, root, facts=facts)


def _measure(files: list[Path], root: Path) -> tuple[int, str]:
    """Total bytes of all files, and the SHA-256 of their names, sizes and contents in order. Raises DataError."""
    digest, total = hashlib.sha256(), 0
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot read: {error.strerror or error}") from error
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
        total += len(content)
    return total, digest.hexdigest()


def standard_library() -> Source:
    """Source text of the running Python's standard library, without a download."""
    root = Path(sysconfig.get_paths()["stdlib"])
    foreign = {"site-packages", "dist-packages"}
    files = sorted(file for file in root.rglob("*.py") if foreign.isdisjoint(file.relative_to(root).parts))
    version = sysconfig.get_python_version()
    if not files:
        raise DataError(f"{root} holds no source text of the standard library: use your own text with --input")
    return Source("corpus", f"source text of the Python {version} standard library", files, root)


def local_text(inputs: list[str]) -> Source:
    """Local files and folders. Binary files in a folder are skipped."""
    files = [
        file.resolve()
        for name in inputs
        for file in find_files([name])
        if not (Path(name).is_dir() and _is_binary(file))
    ]
    if not files:
        raise DataError(f"{', '.join(inputs)}: no text files")
    return Source("corpus", ", ".join(inputs), files, Path(files[0].anchor))


def _is_binary(file: Path) -> bool:
    if file.suffix in COMPRESSED:
        return False
    with open(file, "rb") as stream:
        return b"\0" in stream.read(8192)


def downloaded_text(name: str, data_dir: Path, again: bool = False) -> Source:
    """A plain text of DOWNLOADS, downloaded to its folder unless it is there. Raises DataError without a network."""
    data_set = known(name)
    return Source(name, data_set.urls[0], fetch(data_set, data_dir, again), data_dir / data_set.folder, shuffle=False)


def read_documents(source: Source, seed: int) -> tuple[list[str], bool]:
    """Return the texts of all documents in the order of writing, and whether they are whole documents.

    Python sources are decoded as they declare; undecodable ones are skipped. Fewer than MIN_DOCUMENTS documents are
    cut into pieces, which are not whole. Texts are shuffled with `seed`, so that the last few percent represent all.
    """
    texts: list[str] = []
    plain: list[Path] = []
    for file in source.files:
        if file.suffix != ".py":
            plain.append(file)
            continue
        try:
            with tokenize.open(file) as stream:
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # the standard library's tests contain deliberately broken sources
        except OSError as error:
            raise DataError(f"{file}: cannot read: {error.strerror or error}") from error
        if text.strip():
            texts.append(text)
    texts += [document["text"] for document in DocumentReader(plain)]
    if not texts:
        raise DataError(f"{source.description}: no text in {len(source.files)} files")
    whole = len(texts) >= MIN_DOCUMENTS
    if not whole:
        size = max(_MIN_PIECE, sum(map(len, texts)) // _PIECES)
        texts = [piece for text in texts for piece in cut(text, size)]
    if source.shuffle:
        Random(seed).shuffle(texts)
    return texts, whole


def cut(text: str, size: int) -> list[str]:
    """Cut text into pieces of at most `size` characters, after a line if one ends in a piece's second half."""
    pieces, start = [], 0
    while start < len(text):
        end = start + size
        if end < len(text):
            line_end = text.rfind("\n", start + size // 2, end)
            end = line_end + 1 if line_end >= 0 else end
        pieces.append(text[start:end])
        start = end
    return pieces
