"""The shell commands of the READMEs run as printed, in their order, on a copy of the configurations with short runs."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from megatron.neox_arguments import NeoXArgs

ROOT = Path(__file__).resolve().parents[1]
JUDGES = ("width_check.py",)  # 12 steps can be too few for wider to be better: exit code 1 is a result here
KEPT = (".git", ".venv", "configs", "data", "runs", "checkpoints")
pytestmark = pytest.mark.xdist_group("readme")
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


def run(folder, script, codes=(0,)):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode in codes, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_readme_has_blocks_of_commands():
    blocks = shell_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert blocks[0].startswith(SETUP) and len(blocks) >= 4
    commands = indented_blocks((ROOT / "README-MUP.md").read_text(encoding="utf-8"))
    assert any(command.startswith("python tools/mup/audit.py") for command in commands)


@pytest.fixture(scope="module")
def printed(folder):
    """What each block of README.md prints. Its search, ladder and corpus stay in the folder."""
    blocks = shell_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    return [run(folder, block.removeprefix(SETUP)) for block in blocks]


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_printed(folder, printed):
    assert "finished at step 12 of 12" in printed[0]
    assert (folder / "report.html").stat().st_size > 1e6
    expected = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)[1]
    for shown in expected.splitlines():
        start = re.split(r"[\d.]", shown)[0]
        assert any(line.startswith(start) for line in printed[0].splitlines()), shown


@pytest.mark.slow
def test_the_commands_of_the_guide_work_as_printed(folder, printed):
    """The guide uses the corpus, the search and the ladder of README.md, in the same folder."""
    blocks = indented_blocks((ROOT / "README-MUP.md").read_text(encoding="utf-8"))
    for command in (line for block in blocks for line in commands_of(block)):
        run(folder, command, codes=(0, 1) if any(name in command for name in JUDGES) else (0,))
    for name in ("base-shapes.0", "runs/check/coord_check.0.json", "lr_landscape.png", "runs/forecast.json"):
        assert (folder / name).is_file(), name
    new = [path for path in folder.iterdir() if not path.is_symlink() and path.name != "configs"]
    made = [f"{path.name}/" if path.is_dir() else path.name for path in new]
    checked = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True)
    assert set(made) == set(checked.stdout.split()), "files that git would show after the commands of the READMEs"


# --- options ---

PAGES = sorted([ROOT / "README.md", ROOT / "README-MUP.md", *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(r"python (?P<script>[\w/]+\.py)(?P<arguments>[^`#|;&\n]*)")
OPTION = re.compile(r"(?<=\s)--[a-z][\w.-]*")
TAKE_KEYS = "--key value"  # in the help of a command whose options can override any key of the configuration


def commands_of(block):
    """The commands of a block, one string each."""
    return [line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def mentioned(page):
    """Script -> its options, in the blocks and sentences of a page."""
    options = {}
    for found in COMMAND.finditer(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        options.setdefault(found["script"], set()).update(OPTION.findall(found["arguments"]))
    return options


@functools.cache
def help_of(script):
    """What a script prints for --help, run in this process."""
    arguments = [script, *(["train.py"] if script == "deepy.py" else []), "--help"]
    path = [str((ROOT / script).parent), *sys.path]
    with mock.patch.object(sys, "argv", arguments), mock.patch.object(sys, "path", path):
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert "usage" in printed.getvalue(), script
    return printed.getvalue()


def is_option(script, option):
    key = option.removeprefix("--").partition(".")[0]
    known = {name.replace("_", "-") for name in NeoXArgs.__dataclass_fields__} | {"lr"}
    return re.search(rf"{re.escape(option)}\b", help_of(script)) or (TAKE_KEYS in help_of(script) and key in known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_printed_commands_and_their_options_exist(page):
    unknown = [
        (script, option)
        for script, options in mentioned(page).items()
        for option in options
        if not is_option(script, option)
    ]
    assert not unknown


def test_an_option_that_no_command_has_is_seen():
    assert is_option("deepy.py", "--optimizer.params.eps") and is_option("tools/mup/search.py", "--confirm")
    assert not is_option("deepy.py", "--learning-rates") and not is_option("tools/scaling/report.py", "--train-iters")
