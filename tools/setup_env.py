"""Create the virtual environment for `make setup`. Needs only Python and its venv module.

    python tools/setup_env.py [--venv .venv] [--extras dev]

On a machine without an NVIDIA GPU, torch comes from PyTorch's CPU wheel index, because the default wheel for Linux
brings gigabytes of CUDA libraries. If that index is not available, the default index is used.
Running it again updates an existing environment.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON = (3, 11)


class SetupError(Exception):
    """An error that the user has to fix first."""


def say(message: str) -> None:
    print(f"setup: {message}", flush=True)


def make_venv(venv: Path) -> Path:
    """Create the environment unless it exists. Returns its Python."""
    python = venv / "bin" / "python"
    if not (python.exists() and (venv / "pyvenv.cfg").exists()):
        say(f"creating {venv} with Python {sys.version.split()[0]}")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)])
        if made.returncode:
            raise SetupError(
                f"{sys.executable} cannot create a virtual environment; "
                "on Debian and Ubuntu: apt-get install python3-venv"
            )
    return python


def has_nvidia_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def pinned(package: str) -> str:
    """`package==version` from the constraints file. Raises SetupError if there is no pin."""
    pin = re.search(rf"^{package}==\S+$", CONSTRAINTS.read_text(), flags=re.MULTILINE)
    if pin is None:
        raise SetupError(f"{CONSTRAINTS} has no pin for {package}")
    return pin.group()


def pip_install(python: Path, *arguments: str) -> bool:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    say("pip install " + " ".join(arguments))
    return subprocess.run(command, cwd=ROOT).returncode == 0


def install_cpu_torch(python: Path) -> None:
    """Install torch without its dependencies, which are installed later. A dead index costs half a minute at most."""
    torch = pinned("torch")
    say(f"no NVIDIA GPU found: installing {torch} from PyTorch's CPU wheels")
    patience = ("--retries", "1", "--timeout", "15")
    if not pip_install(python, *patience, "--no-deps", "-i", CPU_INDEX, torch):
        say(
            f"{CPU_INDEX} is not available (see pip's message above): installing torch from the default "
            "index instead, which can bring several gigabytes of CUDA libraries"
        )


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--extras", default="dev", help="extras of pyproject.toml, separated by commas")
    args = parser.parse_args(input_args)
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"expected Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, but {sys.executable} is "
            f"{sys.version.split()[0]}; select another with `make setup PYTHON=python3.12`"
        )
    python = make_venv(args.venv)
    if sys.platform == "linux" and not has_nvidia_gpu():
        install_cpu_torch(python)
    if not pip_install(python, "--constraint", str(CONSTRAINTS.relative_to(ROOT)), "--editable", f".[{args.extras}]"):
        raise SetupError("pip could not install the packages: see its message above")
    say(f"{args.venv} is ready")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
