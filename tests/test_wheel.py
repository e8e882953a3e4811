"""The wheel, installed outside a checkout: its content, and its commands train, search and predict."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from megatron.monitoring.jsonl import read_metrics
from tests.training.harness import configuration, environment, make_corpus

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("multiprocess")]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without this checkout on the path. Asserts success and shows the output of a failure."""
    variables = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources because building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("configs", "megatron", "muneox", "mup"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source / name)
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel):
    """`muneox` of a new environment that holds the wheel and shares this environment's other packages."""
    venv = wheel.parent / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=wheel.parent)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel,
        cwd=wheel.parent)  # fmt: skip
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()))  # .pth files in them are not read
    return venv / "bin" / "muneox"


@pytest.fixture
def empty(tmp_path):
    """An empty folder to run in. Its parent holds the corpus and the configuration."""
    prefix = make_corpus(tmp_path / "text_document")
    config = configuration(prefix, tmp_path / "log", init_method_std=0.05)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_it_holds_only_the_packages_and_the_configurations(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"megatron", "muneox", "mup"}
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert {f"megatron/{name}" for name in configs} == {name for name in names if name.startswith("megatron/configs/")}
    assert not [name for name in names if name.startswith("muneox/development/")]
    assert {"muneox/report/script.js", "muneox/report/style.css", "mup/py.typed"} <= set(names)


def test_the_installed_package_runs(command, empty):
    script = "import muneox, megatron, mup; print(muneox.__file__, megatron.__file__, mup.__file__)"
    files = run(command.parent / "python", "-c", script, cwd=empty).stdout.split()
    assert len(files) == 3 and all(Path(file).is_relative_to(command.parents[1]) for file in files)


def test_it_lists_its_commands(command, empty):
    text = run(command, "--help", cwd=empty).stdout
    assert all(f"\n  {name} " in text for name in ("train", "generate", "search", "predict-loss", "report"))
    for name in ("audit", "search", "train"):
        assert run(command, name, "--help", cwd=empty).stdout.startswith(f"usage: muneox {name} ")


@pytest.mark.parametrize("processes", [1, 2])
def test_it_trains(command, empty, processes):
    options = ("--num-gpus", processes, "--save", "checkpoints")
    run(command, "train", "../config.json", *options, cwd=empty)
    header, records = read_metrics(empty.parent / "log" / "metrics.jsonl")
    assert header["world_size"] == processes and [record["step"] for record in records][-1] == 8
    text = run(command, "inspect-checkpoints", "checkpoints", cwd=empty).stdout
    assert "global_step8" in text or "step 8" in text


def test_it_finds_its_own_configurations(command, empty):
    options = ("--dry-run", "--padded-vocab-size", 512)
    text = run(command, "train", "configs/mup/base.yml", "configs/local_setup.yml", *options, cwd=empty).stdout
    assert "parameters" in text


def test_it_searches(command, empty):
    options = ("--trials", 2, "--workers", 2, "--train-iters", 4, "--out", "out")
    text = run(command, "search", "../config.json", *options, cwd=empty).stdout
    assert "2/2 trials" in text and "use it: muneox train target.yml out/best.yml" in text
    assert (empty / "out" / "best.yml").is_file()


def test_it_predicts_a_loss(command, empty):
    """A ladder that follows L = 20 N^-0.3 + 1.5 exactly."""
    sizes = [1e6 * 2**i for i in range(6)]
    rows = [f"{size},{20 * size**-0.3 + 1.5}" for size in sizes]
    (empty / "ladder.csv").write_text("params,loss\n" + "\n".join(rows))
    options = ("--x", "params", "--y", "loss", "--target", "1e9", "--json", "forecast.json")
    run(command, "predict-loss", "ladder.csv", *options, cwd=empty)
    [target] = json.loads((empty / "forecast.json").read_text())["targets"]
    assert target["prediction"] == pytest.approx(20 * 1e9**-0.3 + 1.5, rel=0.01)
