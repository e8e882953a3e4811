"""Where the text of a corpus comes from: the Python standard library, local files, or a named download."""

from __future__ import annotations

import hashlib
import shutil
import sysconfig
import tempfile
import tokenize
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

from megatron.data.documents import COMPRESSED, DocumentReader, find_files
from megatron.errors import ConfigError, DataError

DOWNLOADS = {
    "enwik8": "http://mattmahoney.net/dc/enwik8.zip",
    "text8": "http://mattmahoney.net/dc/text8.zip",
    "tinyshakespeare": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
}
# Fewer documents are cut into pieces: `split` divides by documents, and 0.1 % of them should be one at least.
MIN_DOCUMENTS = 500
_PIECES, _MIN_PIECE = 1000, 1024


@dataclass(frozen=True)
class Source:
    """The files of a corpus. `shuffle` is false for text whose order is part of how it is split into train
    and valid.
    """

    name: str
    description: str
    files: list[Path]
    root: Path
    shuffle: bool = True

    def fingerprint(self) -> str:
        """Changes when a file is added, taken away or modified."""
        digest = hashlib.sha256()
        for file in self.files:
            stat = file.stat()
            digest.update(f"{file.relative_to(self.root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def standard_library() -> Source:
    """Source text of the Python standard library that runs this; no download."""
    root = Path(sysconfig.get_paths()["stdlib"])
    foreign = {"site-packages", "dist-packages"}
    files = sorted(file for file in root.rglob("*.py") if foreign.isdisjoint(file.relative_to(root).parts))
    version = sysconfig.get_python_version()
    if not files:
        raise DataError(f"{root} holds no source text of the standard library: give text with --input")
    return Source("corpus", f"source text of the Python {version} standard library", files, root)


def local_text(inputs: list[str]) -> Source:
    """Files and folders of this machine. Binary files of a folder are left out."""
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


def named_download(name: str, folder: Path) -> Source:
    """A well-known corpus, downloaded into `folder` unless it is there. DataError without a network."""
    if name not in DOWNLOADS:
        raise ConfigError(
            f"no data set is called {name!r}; there are {', '.join(DOWNLOADS)}, --input for your own text, "
            "and the default corpus when no name is given"
        )
    file = folder / f"{name}.txt"
    if not file.is_file():
        _download(DOWNLOADS[name], file)
    return Source(name, DOWNLOADS[name], [file], folder, shuffle=False)


def _download(url: str, target: Path) -> None:
    """Fetch `url`, unpack it if it is a zip of one file, and only then name it `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            fetched, unpacked = Path(folder, "fetched"), Path(folder, "unpacked")
            with urllib.request.urlopen(url, timeout=30) as response, open(fetched, "wb") as out:
                shutil.copyfileobj(response, out)
            if url.endswith(".zip"):
                with zipfile.ZipFile(fetched) as archive, archive.open(archive.namelist()[0]) as member:
                    with open(unpacked, "wb") as out:
                        shutil.copyfileobj(member, out)
                fetched = unpacked
            fetched.replace(target)
    except (urllib.error.URLError, OSError, zipfile.BadZipFile, EOFError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot download {url} ({reason}): put its text at {target}, "
            "or run `python prepare_data.py`, whose default corpus needs no network"
        ) from error


def read_documents(source: Source, seed: int) -> tuple[list[str], bool]:
    """Texts of all documents, in the order in which they will be written, and whether they are whole.

    Python sources are decoded as they declare; those that cannot be are left out. A few long documents are
    cut into pieces (not whole). Shuffled with a fixed seed, so that the last few percent represent all.
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
            continue  # the standard library's tests hold sources that are meant to be broken
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
    """Pieces of about `size` characters, cut after a line where one ends in the second half of the piece."""
    pieces, start = [], 0
    while start < len(text):
        end = start + size
        if end < len(text):
            line_end = text.rfind("\n", start + size // 2, end)
            end = line_end + 1 if line_end >= 0 else end
        pieces.append(text[start:end])
        start = end
    return pieces
