"""Our package against the original mup 1.0.0 from PyPI, in a separate folder and a separate process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
pytestmark = pytest.mark.slow


def run(command: list[str], python_path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(python_path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the original package: $MUP_ORACLE, or installed by pip without its dependencies."""
    if given := os.environ.get("MUP_ORACLE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("oracle")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        "mup==1.0.0",
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot fetch mup==1.0.0: {done.stderr[-300:]}")
    return folder


def facts_of(package: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    done = run([sys.executable, str(HERE / "facts.py"), str(folder)], package, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    facts: dict[str, Any] = json.loads(done.stdout)
    assert Path(facts["file"]).parent.resolve() == package.resolve()
    return facts


@pytest.fixture(scope="module")
def both(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of ours and of the original. Each reads the base-shape file that the other wrote."""
    folder = tmp_path_factory.mktemp("exchange")
    ours, theirs = folder / "ours", folder / "theirs"
    facts_of(ROOT, ours)
    facts_of(oracle, theirs)
    (ours / "given.bsh").write_bytes((theirs / "written.bsh").read_bytes())
    (theirs / "given.bsh").write_bytes((ours / "written.bsh").read_bytes())
    return facts_of(ROOT, ours), facts_of(oracle, theirs)


def close(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return math.isclose(a, b, rel_tol=2e-6, abs_tol=1e-7)


def test_the_shared_suite_passes_under_the_original(oracle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(HERE)]
    done = run([*command, "-p", "no:cacheprovider", str(HERE / "test_api.py")], oracle, tmp_path)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-3000:]


def test_infshapes_are_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name, ours in both[0]["models"].items():
        assert ours["infshapes"] == both[1]["models"][name]["infshapes"], name
    assert both[0]["base_shapes"] == both[1]["base_shapes"]


def test_groups_are_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name, ours in both[0]["models"].items():
        for kind, groups in ours["groups"].items():
            theirs = both[1]["models"][name]["groups"][kind]
            assert [g["params"] for g in groups] == [g["params"] for g in theirs], (name, kind)
            for key in ("lr", "weight_decay"):
                assert close([g[key] for g in groups], [g[key] for g in theirs]), (name, kind)


def test_init_is_equal_and_bit_equal_for_a_factor_of_one(
    both: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    bits = 0
    for name, ours in both[0]["models"].items():
        for kind in ("inits", "rescaled"):
            for key, own in ours[kind].items():
                other = both[1]["models"][name][kind][key]
                assert close(own["head"], other["head"]) and close(own["std"], other["std"]), (name, key)
                parameter = ours["infshapes"][key.split(" ")[-1]]
                if parameter["width_mult"] == 1 or (kind == "inits" and parameter["ninf"] < 2 and "ing" not in key):
                    assert own["sha256"] == other["sha256"], (name, key)
                    bits += 1
    assert bits > 80


def test_readouts_are_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name, ours in both[0]["models"].items():
        assert close(ours["readout"], both[1]["models"][name]["readout"]), name


def test_base_shape_files_are_compatible_both_ways(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for facts in both:
        assert facts["given"] == facts["read_back"] == both[0]["read_back"]
    assert both[0]["given_infshapes"] == both[1]["given_infshapes"]
