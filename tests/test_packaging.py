"""Rules of the project that linters do not check: one source of versions, one direction of imports, small files."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import megatron

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = ROOT / "requirements"
SOURCES = sorted(
    path
    for place in ("megatron", "muneox", "mup", "tools", "benchmarks")
    for path in (ROOT / place).rglob("*.py")
    if "tests" not in path.parts
)
SCRIPTS = sorted(ROOT.glob("*.py"))

# --- versions and extras ---


def statements(path: Path) -> list[str]:
    """Lines of a requirements file without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def test_requirements_have_one_file_per_extra_and_no_versions():
    expected = {f"requirements-{extra}.txt": [f"-e .[{extra}]"] for extra in EXTRAS}
    expected["requirements.txt"] = ["-e ."]
    found = {path.name: statements(path) for path in REQUIREMENTS.glob("requirements*.txt")}
    assert found == expected


def all_requirements() -> list[Requirement]:
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(r for rs in EXTRAS.values() for r in rs)]]


def constraints() -> dict[str, Requirement]:
    pins = [Requirement(line) for line in statements(REQUIREMENTS / "constraints.txt")]
    assert len({canonicalize_name(pin.name) for pin in pins}) == len(pins), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_every_direct_dependency_is_pinned_within_its_range():
    pins = constraints()
    for requirement in all_requirements():
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= EXTRAS.keys()
            continue
        [pin] = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==" and "+" not in pin.version, f"{requirement.name}: no exact, general pin"
        assert requirement.specifier.contains(pin.version), requirement.name


def test_pins_cover_indirect_dependencies():
    """Follow the requirements of the installed packages, starting from the direct dependencies."""
    pins, todo, seen = constraints(), all_requirements(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or name == PROJECT["name"]:
            continue
        seen.add(name)
        assert name in pins, f"{name} is not pinned in requirements/constraints.txt"
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        wanted = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
        for need in map(Requirement, needs):
            # torch pins the dependencies of its CUDA build.
            if name != "torch" and (need.marker is None or any(map(need.marker.evaluate, wanted))):
                todo.append(need)


def test_the_apex_extra_installs_nothing():
    """The package `apex` on PyPI is not NVIDIA's."""
    assert EXTRAS["apex"] == [] and "apex" not in constraints()


def test_the_version_has_one_source():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert TOOLS["setuptools"]["dynamic"]["version"] == {"attr": "megatron.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", megatron.__version__)
    assert importlib.metadata.version(PROJECT["name"]) == megatron.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == megatron.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:2] == ["Unreleased", megatron.__version__]


def test_continuous_integration_and_hooks_run_what_contributors_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"run": ".ci/run"} in workflow["jobs"]["check"]["steps"] and os.access(ROOT / ".ci" / "run", os.X_OK)
    pythons = workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert {f"Programming Language :: Python :: {python}" for python in pythons} <= set(PROJECT["classifiers"])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}, "a hook that needs the network"
    commands = [hook["entry"].split()[:2] for repository in hooks for hook in repository["hooks"]]
    assert commands == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"], ["make", "typecheck"]]


def test_files_that_pip_reads_name_no_index():
    for path in [ROOT / "pyproject.toml", *REQUIREMENTS.iterdir()]:
        assert not re.search(r"index.url|find.links|file://", path.read_text()), path.name


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split())
    assert {"setup", "demo", "test", "test-all", "lint", "typecheck", "bench", "clean", "help"} <= targets
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^\s+make ([\w-]+)", shown, re.MULTILINE)) == targets


# --- imports ---

ENTRY_SCRIPTS = tuple(path.stem for path in SCRIPTS)
BRIDGE, MODEL, TRAINING = "megatron.parametrization", "megatron.model", "megatron.training"
# package -> modules that it must not import, at any depth of its code
FORBIDDEN = {
    "mup": ("megatron", "muneox", "tools", "yaml", "deepspeed", "torch.distributed"),
    "megatron": ("muneox", "tools", "benchmarks", *ENTRY_SCRIPTS),
    "muneox": ("tools", "benchmarks", *ENTRY_SCRIPTS),
    "megatron.mpu": ("mup", BRIDGE, MODEL, TRAINING, "megatron.neox_arguments"),
    BRIDGE: (MODEL, TRAINING, "megatron.neox_arguments"),
    MODEL: (TRAINING, "megatron.neox_arguments"),
    "megatron.neox_arguments": ("torch", "deepspeed", "mup", BRIDGE, MODEL, TRAINING, "megatron.mpu"),
    "megatron.data": ("mup", BRIDGE, MODEL, TRAINING, "megatron.neox_arguments"),
    "megatron.tokenizer": ("mup", BRIDGE, MODEL, TRAINING, "megatron.neox_arguments"),
    "megatron.monitoring": ("mup", BRIDGE, MODEL, TRAINING, "megatron.neox_arguments"),
    "megatron.checkpointing": (MODEL, TRAINING),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every name that the code imports, with relative imports resolved. `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            origin = parents[: len(parents) - node.level + 1] if node.level else []
            origin += [node.module] if node.module else []
            yield from (".".join([*origin, alias.name]) for alias in node.names)


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    rules = [(part, name) for part, names in FORBIDDEN.items() if within(module, part) for name in names]
    return [
        f"{module} imports {name}, which {part} must not"
        for name in imported(ast.parse(source), module, is_package)
        for part, forbidden in rules
        if within(name, forbidden)
    ]


def test_imports_go_in_one_direction():
    found = [
        violation
        for path in SOURCES
        for violation in violations(path.read_text(), module_name(path), path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mup.layer", "import megatron.errors"),
        ("mup.layer", "from megatron import errors"),
        ("mup.bsh", "def load():\n    import yaml"),
        ("megatron.mpu.layers", "from mup.rules import Role"),
        ("megatron.model.gpt", "from ..training import step"),
        ("megatron.model.gpt", "from .. import training"),
        ("megatron.parametrization.plan", "from megatron.model import gpt"),
        ("megatron.neox_arguments.arguments", "if True:\n    import torch.nn"),
        ("megatron.data.loader", "from muneox.commands import search"),
    ],
)
def test_the_import_check_sees_every_way_to_write_one(module, source):
    assert violations(source, module)


# --- code ---


def test_files_stay_under_400_lines():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in [*SOURCES, *SCRIPTS]}
    assert {name: size for name, size in sizes.items() if size >= 400} == {}


def exits(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Raise) else ""
        if re.match(r"(sys\.exit|os\._exit|exit|quit)\(|raise SystemExit", text):
            yield node


# A second signal ends the process from a thread of its own, whose exception the main thread would never see.
MAY_EXIT = {"megatron/training/stop.py", "megatron/launch/host.py"}  # the second is a module that pdsh runs


def test_only_entry_scripts_exit():
    """A library raises instead of exiting, so that its caller can decide."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if path.relative_to(ROOT).parts[0] in ("muneox", "tools", "benchmarks"):
            # A script can exit only under `if __name__ == "__main__":`.
            tree.body = [node for node in tree.body if "__name__ == '__main__'" not in ast.unparse(node)]
        found += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in exits(tree)]
    assert {place.rpartition(":")[0] for place in found} == MAY_EXIT
    assert len(list(exits(ast.parse("import sys\ndef f():\n    sys.exit(1)\n    raise SystemExit(2)")))) == 2
