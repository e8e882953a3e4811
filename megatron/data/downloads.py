"""Data sets that are downloaded by name, among them GPT-NeoX's, and the files of GPT-2's tokenizer."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from megatron.errors import ConfigError, DataError
from megatron.files import put_in_place

_PILE = "https://the-eye.eu/public/AI/pile"
_PARTS = "https://the-eye.eu/public/AI/pile_preliminary_components"
_C4 = "https://the-eye.eu/eleuther_staging/c4"


@dataclass(frozen=True)
class Download:
    """Where a data set comes from. folder: its folder and file names. text: it is one plain text, cut into pieces."""

    folder: str
    urls: tuple[str, ...]
    text: bool = False


def _one(folder: str, url: str, text: bool = False) -> Download:
    return Download(folder, (url,), text)


# Names, folders and addresses of GPT-NeoX's data sets, and two small texts.
DOWNLOADS = {
    "enwik8": _one("enwik8", "http://mattmahoney.net/dc/enwik8.zip", text=True),
    "text8": _one("text8", "http://mattmahoney.net/dc/text8.zip", text=True),
    "tinyshakespeare": _one(
        "tinyshakespeare",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        text=True,
    ),
    "enron": _one("enron", "http://eaidata.bmk.sh/data/enron_emails.jsonl.zst"),
    "pile_subset": _one("pile_00", f"{_PILE}/train/00.jsonl.zst"),
    "pile": Download("pile", tuple(f"{_PILE}/train/{i:02}.jsonl.zst" for i in range(30))),
    "github": _one("github", "http://eaidata.bmk.sh/data/github_small.jsonl.zst"),
    "arxiv": _one("arxiv", f"{_PARTS}/2020-09-08-arxiv-extracts-nofallback-until-2007-068.tar.gz"),
    "europarl": _one("europarl", f"{_PARTS}/EuroParliamentProceedings_1996_2011.jsonl.zst"),
    "freelaw": _one("freelaw", f"{_PARTS}/FreeLaw_Opinions.jsonl.zst"),
    "nih": _one("nih", f"{_PARTS}/NIH_ExPORTER_awarded_grant_text.jsonl.zst"),
    "pubmed": _one("pubmed", f"{_PARTS}/PMC_extracts.tar.gz"),
    "books1": _one("books1", f"{_PARTS}/books1.tar.gz"),
    "books3": _one("books3", f"{_PARTS}/books3.tar.gz"),
    "hackernews": _one("hackernews", f"{_PARTS}/hn.tar.gz"),
    "openwebtext2": _one(
        "openwebtext2", "https://huggingface.co/datasets/segyges/OpenWebText2/resolve/main/openwebtext2.jsonl.zst.tar"
    ),
    "stackexchange": _one("stackexchange", f"{_PARTS}/stackexchange_dataset.tar"),
    "ubuntu_irc": _one("ubuntu_irc", f"{_PARTS}/ubuntu_irc_until_2020_9_1.jsonl.zst"),
    "youtube_subtitles": _one("youtube_subtitles", f"{_PARTS}/yt_subs.jsonl.zst"),
    "c4": Download("c4", tuple(f"{_C4}/en/c4-train.{i:05}-of-01024.json.gz" for i in range(1024))),
    "c4_openwebtext": Download(
        "c4_openwebtext", tuple(f"{_C4}/realnewslike/c4-train.{i:05}-of-00512.json.gz" for i in range(512))
    ),
}
DEFAULT = "enwik8"  # GPT-NeoX's
_GPT2 = "https://s3.amazonaws.com/models.huggingface.co/bert"


def known(name: str) -> Download:
    """The data set of this name. Raises ConfigError."""
    if name not in DOWNLOADS:
        raise ConfigError(
            f"unknown data set {name!r}; expected one of {', '.join(DOWNLOADS)}; use --input for your own text, "
            "and no name for the default corpus"
        )
    return DOWNLOADS[name]


def fetch(data_set: Download, data_dir: Path, again: bool = False) -> list[Path]:
    """Files of a data set in its folder. Downloads those that are not there, or all if `again`. Raises DataError."""
    folder, files = data_dir / data_set.folder, []
    for url in data_set.urls:
        name = f"{data_set.folder}.txt" if data_set.text else url.rpartition("/")[2].replace(".json.gz", ".jsonl.gz")
        files.append(_fetch(url, folder / name, again))
    return files


def fetch_gpt2_tokenizer(data_dir: Path, again: bool = False) -> tuple[Path, Path]:
    """gpt2-vocab.json and gpt2-merges.txt in `data_dir`. Downloads those that are not there. Raises DataError."""
    vocab, merges = (
        _fetch(f"{_GPT2}/{name}", data_dir / name, again) for name in ("gpt2-vocab.json", "gpt2-merges.txt")
    )
    return vocab, merges


def _fetch(url: str, target: Path, again: bool) -> Path:
    if again or not target.is_file():
        _download(url, target)
    return target


def _download(url: str, target: Path) -> None:
    """Download `url`, unpack it if it is a zip of one file, and then move it to `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            fetched = Path(folder, "fetched")
            with urllib.request.urlopen(url, timeout=30) as response, open(fetched, "wb") as out:
                shutil.copyfileobj(response, out)
            put_in_place(_unzipped(fetched) if url.endswith(".zip") else fetched, target)
    except (urllib.error.URLError, OSError, zipfile.BadZipFile, EOFError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot download {url} ({reason}): put {'its text' if url.endswith('.zip') else 'it'} at {target}, "
            "or use the default corpus, which needs no network: `python prepare_data.py`"
        ) from error


def _unzipped(archive: Path) -> Path:
    unpacked = archive.with_name("unpacked")
    with (
        zipfile.ZipFile(archive) as content,
        content.open(content.namelist()[0]) as member,
        open(unpacked, "wb") as out,
    ):
        shutil.copyfileobj(member, out)
    return unpacked
