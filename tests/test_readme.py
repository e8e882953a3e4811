"""The shell commands of the READMEs run as printed, in their order, on a copy of the configurations with short runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = (".git", ".venv", "configs", "data", "runs", "checkpoints")
SETUP = "make setup && source .venv/bin/activate\n"  # the environment of the tests has it


def shell_blocks(text: str) -> list[str]:
    """Fenced blocks of shell commands."""
    return re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S)


def indented_blocks(text: str) -> list[str]:
    """Indented blocks of a page: commands in all of them."""
    blocks = re.findall(r"(?:^    .+\n)+", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in blocks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The repository as links, with a copy of configs/ whose proxy and target train for 12 steps."""
    folder = tmp_path_factory.mktemp("readme")
    for entry in ROOT.iterdir():
        if entry.name not in KEPT and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    for file in (ROOT / "configs").rglob("*"):
        if file.is_file():
            place = folder / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text()
            if file.name in ("base.yml", "target.yml"):
                for key, value in (("train-iters", 12), ("eval-interval", 12), ("eval-iters", 2), ("log-interval", 4)):
                    text, found = re.subn(rf"^{key}: \d+$", f"{key}: {value}", text, flags=re.M)
                    assert found == 1
            place.write_text(text)
    return folder


def run(folder, script):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_readme_has_blocks_of_commands():
    blocks = shell_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert blocks[0].startswith(SETUP) and len(blocks) >= 4
    commands = indented_blocks((ROOT / "README-MUP.md").read_text(encoding="utf-8"))
    assert any(command.startswith("python tools/mup/audit.py") for command in commands)


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_printed(folder):
    blocks = shell_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    printed = [run(folder, block.removeprefix(SETUP)) for block in blocks]
    assert "finished at step 12 of 12" in printed[0]
    assert (folder / "report.html").stat().st_size > 1e6
    expected = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)[1]
    for shown in expected.splitlines():
        start = re.split(r"[\d.]", shown)[0]
        assert any(line.startswith(start) for line in printed[0].splitlines()), shown
