"""The mup package: names, typing, import cost, file sizes, separate installation, examples."""

from __future__ import annotations

import ast
import os
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mup

PACKAGE = Path(mup.__file__).parent
ROOT = PACKAGE.parent


def python(code: str, *flags: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *flags, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_all_lists_every_public_name() -> None:
    names = {name for name in vars(mup) if not name.startswith("_")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert set(mup.__all__) <= names and names - set(mup.__all__) <= modules
    assert sorted(mup.__all__) == mup.__all__ and len(set(mup.__all__)) == len(mup.__all__)
    scope: dict[str, object] = {}
    exec("from mup import *", scope)
    assert set(scope) - {"__builtins__"} == set(mup.__all__)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_modules_have_docstrings_and_under_400_lines(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) and len(path.read_text().splitlines()) < 400
    if path.stem == "__init__":
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.stem}.{node.name} has no docstring"


def test_every_name_of_the_original_exists() -> None:
    import mup.coord_check
    import mup.infshape
    import mup.init
    import mup.layer
    import mup.optim
    import mup.shape

    names = {
        "infshape": "InfDim InfShape zip_infshape",
        "shape": "get_shapes get_infshapes save_base_shapes load_base_shapes zip_infshapes clear_dims make_base_shapes "
        "apply_infshapes set_base_shapes assert_hidden_size_inf",
        "init": "uniform_ normal_ trunc_normal_ ones_ eye_ xavier_uniform_ xavier_normal_ kaiming_uniform_ "
        "kaiming_normal_ constant_std_init_",
        "layer": "MuReadout MuSharedReadout rescale_linear_bias",
        "optim": "process_param_groups MuAdam MuAdamW MuSGD",
        "coord_check": "cov covoffdiag FDICT convert_fdict get_coord_data plot_coord_data example_plot_coord_check",
    }
    for module, own in names.items():
        for name in own.split():
            assert hasattr(getattr(mup, module), name), f"mup.{module}.{name}"
            assert module == "coord_check" or getattr(mup, name) is getattr(getattr(mup, module), name)


def test_importing_mup_imports_only_torch() -> None:
    heavy = (
        "yaml",
        "pandas",
        "matplotlib",
        "seaborn",
        "torchvision",
        "scipy",
        "tqdm",
        "megatron",
        "deepspeed",
    )
    code = "import torch, sys; before = set(sys.modules); import mup; new = set(sys.modules) - before;"
    code += f"print([m for m in {heavy} if m in new]);"
    code += "print(sorted({m.split('.')[0] for m in new}))"
    found, new = python(code).splitlines()
    assert found == "[]"
    assert set(ast.literal_eval(new)) <= {"mup"} | set(sys.stdlib_module_names) | {"torch", "numpy"}


def test_import_cost() -> None:
    """`import mup` takes a small fraction of the process time of `import torch`. Both scale with the machine."""
    code = "import time; a = time.process_time(); import torch; b = time.process_time(); import mup;"
    code += "c = time.process_time(); print((c - b) / (b - a))"
    assert statistics.median(float(python(code)) for _ in range(3)) < 0.1


def test_the_versions_agree() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    assert project["version"] == mup.__version__ and (PACKAGE / "py.typed").exists()


def test_no_module_of_mup_imports_the_trainer() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("megatron", "yaml", "deepspeed") for name in names), path


@pytest.mark.parametrize("example", sorted((PACKAGE / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(example), "--quick"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-2000:]
    assert "PASS" in done.stdout


@pytest.mark.slow
def test_mypy_strict() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "mup"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_it_installs_separately(tmp_path: Path) -> None:
    target, source = tmp_path / "site", tmp_path / "source" / "mup"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))  # pip builds inside the tree
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    done = subprocess.run([*pip, str(source)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    code = "import mup; print(mup.__file__); import mup.coord_check, mup.rules"
    env = {**os.environ, "PYTHONPATH": str(target)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0 and str(target) in ran.stdout, ran.stderr
    assert (target / "mup" / "py.typed").exists()
