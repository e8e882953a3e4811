from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpointing import harness


@pytest.fixture(scope="session")
def one_process() -> None:
    """torch.distributed over gloo with one process, for engines in the test process."""
    torch.set_num_threads(1)
    harness.initialise()


@pytest.fixture(scope="session")
def engine(one_process: None) -> Any:
    """One ZeRO 1 engine for tests that need any engine to save and load."""
    return harness.build_engine(stage=1)


@pytest.fixture(scope="session")
def _saved_steps(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("checkpoints")
    harness.train(engine, 0, 3, save_dir)
    return save_dir


@pytest.fixture
def checkpoints(_saved_steps: Path, tmp_path: Path) -> Path:
    """A fresh copy of a save directory with steps 1, 2 and 3 (ZeRO 1, one process)."""
    return Path(shutil.copytree(_saved_steps, tmp_path / "checkpoints"))
