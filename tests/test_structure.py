"""What the code's structure promises: no import circles, one reader of the keys, a type for each key."""

from __future__ import annotations

import ast
import dataclasses
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest

from megatron.neox_arguments import job_configs, run_config
from tests.test_packaging import ROOT, SCRIPTS, SOURCES, imported, module_name, within

# --- circles ---


def import_graph(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Modules that each module imports, anywhere in its code. sources: module -> (code, whether it is a package)."""
    graph: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        names = list(imported(ast.parse(source), module, is_package))
        targets = {name if name in sources else name.rpartition(".")[0] for name in names}
        graph[module] = (targets & sources.keys()) - {module}
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules of one import circle, in order; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others():
    files = [*SOURCES, *SCRIPTS]
    sources = {module_name(path): (path.read_text(), path.name == "__init__.py") for path in files}
    assert circle(import_graph(sources)) == []


def test_the_check_sees_circles_in_functions_and_under_type_checking():
    sources = {
        "a": ("def build():\n    from p.b import c", False),
        "p": ("", True),
        "p.b": ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.d", False),
        "p.d": ("import a", False),
    }
    assert set(circle(import_graph(sources))) == {"a", "p.b", "p.d"}
    assert circle(import_graph({**sources, "p.d": ("import os", False)})) == []


# --- the audit's second source ---


def test_the_expected_values_of_the_audit_share_no_code_with_what_they_prove():
    """A mistake in the rules, the plan or the resolver cannot be in a module that imports nothing of the project."""
    tree = ast.parse((ROOT / "megatron" / "audit" / "expected.py").read_text())
    allowed = {"__future__", "collections.abc", "dataclasses", "math", "re", "typing"}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules <= allowed
    assert not {getattr(node, "id", "") for node in ast.walk(tree)} & {"__import__", "exec", "eval"}


# --- readers of the configuration ---

# They create a NeoXArgs, vary it, or compare two of them key by key. What they start receives what it resolves to.
ENTRY_POINTS = {
    "deepy",
    "megatron.gpt_neox",  # GPT-NeoX's functions
    "megatron.training",  # pretrain(neox_args), which GPT-NeoX's users call
    "muneox.analysis.make_proxy",
    "muneox.analysis.transfer",
    "muneox.commands.audit",
    "muneox.commands.convert_hf_to_neox",
    "muneox.commands.convert_neox_to_hf",
    "muneox.commands.eval",
    "muneox.commands.generate",
    "muneox.commands.predict_loss",
    "muneox.commands.sweep",
    "muneox.commands.train",
    "muneox.commands.transfer",
    "muneox.development.compare_gpt_neox",
    "muneox.development.layouts",
    "muneox.search.lead",
    "muneox.search.proxy",
    "muneox.search.setup",
    "muneox.search.space",
    "muneox.worker.train",
}


def mentions_the_keys(source: str) -> bool:
    """Whether the code names the class NeoXArgs, or a variable that is called after it."""
    for node in ast.walk(ast.parse(source)):
        names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        names |= {str(getattr(node, part, "")) for part in ("id", "attr", "arg")}
        if {"NeoXArgs", "neox_args"} & names:
            return True
    return False


def test_only_entry_points_and_the_resolving_package_read_keys():
    readers = {module_name(path) for path in [*SOURCES, *SCRIPTS] if mentions_the_keys(path.read_text())}
    assert {name for name in readers if not within(name, "megatron.neox_arguments")} == ENTRY_POINTS


@pytest.mark.parametrize(
    "source",
    [
        "from megatron.neox_arguments import NeoXArgs",
        "import megatron.neox_arguments as m\nm.NeoXArgs",
        "def f(neox_args):\n    pass",
    ],
)
def test_the_check_sees_every_way_to_get_at_the_keys(source):
    assert mentions_the_keys(source) and not mentions_the_keys(
        "from megatron.neox_arguments.run_config import RunConfig"
    )


# --- the resolved configuration ---

CONFIGS = [
    value
    for module in (run_config, job_configs)
    for value in vars(module).values()
    if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
]


@functools.cache
def attributes_read() -> set[str]:
    """Names of attributes in all code but the configuration's own."""
    paths = [path for path in [*SOURCES, *SCRIPTS] if not within(module_name(path), "megatron.neox_arguments")]
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_configurations_are_frozen_and_every_field_is_read(config):
    assert config.__dataclass_params__.frozen
    assert {field.name for field in dataclasses.fields(config)} - attributes_read() == set()


def test_resolving_imports_neither_torch_nor_deepspeed(tmp_path):
    code = f"""
import sys
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import dry_run_config, generation_config, run_config
files = [{str(ROOT / "configs" / "125M.yml")!r}, {str(ROOT / "configs" / "local_setup.yml")!r}]
args = NeoXArgs.from_ymls(files, {{"load": "checkpoints"}}, world_size=1)
run_config(args), dry_run_config(args), generation_config(args)
heavy = {{"torch", "deepspeed", "numpy", "mup"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- types ---

SNIPPET = """
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.resolve import run_config

def right(args: NeoXArgs) -> int:
    steps: int | None = args.train_iters
    return run_config(args).steps + (steps or 0)

def misspelt(args: NeoXArgs) -> None:
    args.no_such_key

def of_another_type(args: NeoXArgs) -> None:
    text: str = args.train_iters

def misspelt_part(args: NeoXArgs) -> None:
    run_config(args).batch.no_such_size
"""


@pytest.mark.slow
def test_a_misspelt_key_and_a_wrong_type_are_type_errors(tmp_path):
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run([*command, str(tmp_path / "snippet.py")], cwd=ROOT, capture_output=True, text=True)
    errors = [line.split(": error: ")[1] for line in done.stdout.splitlines() if ": error: " in line]
    assert [error.split("  [")[1] for error in errors] == ["attr-defined]", "assignment]", "attr-defined]"], done.stdout
    assert "no_such_key" in errors[0] and "int | None" in errors[1] and "no_such_size" in errors[2]


@pytest.mark.slow
def test_megatron_is_typed_strictly():
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "megatron"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
