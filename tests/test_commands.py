"""The command `muneox` and the scripts in tools/: one grammar, help of their own, and nothing imported too early."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import subprocess
import sys

import pytest

from muneox import cli
from tests.training.harness import ROOT, environment

SCRIPTS = sorted(path for path in (ROOT / "tools").rglob("*.py") if path.name != "setup_env.py")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_names_it(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/muneox", name, "--help"])
    try:
        assert cli.main() == 0
    except SystemExit as stop:  # argparse's own end
        assert stop.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: muneox {name} ") and "train.py" not in text.splitlines()[0]


def test_help_lists_the_commands_and_imports_none_of_them():
    script = (
        "import sys; sys.argv = ['muneox']; from muneox.cli import main; code = main();"
        "early = {'torch', 'numpy', 'pydantic', 'rich', 'optuna'} & set(sys.modules);"
        "sys.exit(code or sorted(early) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE) == list(cli.COMMANDS)


def test_an_unknown_command_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["muneox", "serach"])
    assert cli.main() == 2
    error = capsys.readouterr().err
    assert "unknown command 'serach'" in error and "search" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_a_few_lines_that_call_a_module(script):
    text = script.read_text()
    [module] = re.findall(r'run_tool\("([\w.]+)"\)', text)
    assert callable(importlib.import_module(module).main)
    assert len(text.splitlines()) <= 12 and module.endswith(f".{script.stem}")


def test_a_script_without_the_package_says_how_to_get_it(tmp_path):
    """-I: no PYTHONPATH; -S: no site-packages."""
    command = [sys.executable, "-I", "-S", str(ROOT / "tools/mup/search.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "has no package muneox" in done.stderr and "make setup" in done.stderr


def test_the_folder_of_a_script_hides_no_package(tmp_path):
    """tools/mup is a folder of scripts: with tools/ on the path, `import mup` could find it instead of the package."""
    probe = tmp_path / "probe.py"
    probe.write_text("import mup\ndef main(arguments):\n    print(mup.__file__)\n")
    script = (ROOT / "tools/layouts.py").read_text().replace("muneox.development.layouts", "probe")
    (tmp_path / "mup").mkdir()
    (tmp_path / "mup" / "__init__.py").touch()
    (tmp_path / "layouts.py").write_text(script)
    (tmp_path / "elsewhere").mkdir()
    probe.rename(tmp_path / "elsewhere" / "probe.py")
    variables = environment(PYTHONPATH=f"{tmp_path / 'elsewhere'}:{ROOT}")
    done = subprocess.run([sys.executable, tmp_path / "layouts.py"], env=variables, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "mup" / "__init__.py"), done.stderr


def helps(name, monkeypatch, capsys):
    """What `muneox NAME --help` prints on a terminal of 120 columns."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/muneox", name, "--help"])
    with contextlib.suppress(SystemExit):
        cli.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_starts_with_the_purpose_and_examples_and_ends_with_the_next_command(name, monkeypatch, capsys):
    text = helps(name, monkeypatch, capsys)
    _, purpose, examples, *_ = [part for part in text.split("\n\n") if part.strip()]
    assert len(purpose.splitlines()) == 1 and purpose.endswith((".", ";")), purpose
    script = name.replace("-", "_")
    assert all(line.startswith("  ") for line in examples.splitlines()), examples
    assert f"muneox {name} " in examples or f"{script}.py" in examples, examples
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("Next: "), last
    named = re.findall(r"`muneox ([\w-]+)", last)
    assert set(named) <= set(cli.COMMANDS) and name not in named


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_describes_every_option_and_shows_its_default(name, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: made.append(parser))
    helps(name, monkeypatch, capsys)
    for action in made[0]._actions if made else ():
        if action.help is argparse.SUPPRESS:
            continue
        shown = made[0]._get_formatter()._expand_help(action) if action.help else ""
        assert shown, f"{name}: {action.option_strings} has no help"
        value = action.default not in (None, False, True, argparse.SUPPRESS, "") and action.default != []
        if action.option_strings and value:
            assert "default" in shown, f"{name}: {action.option_strings}"
