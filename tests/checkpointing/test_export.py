"""An export without parameters raises an error and writes no file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing.integrity import write_manifest, write_torch

ROOT = Path(__file__).resolve().parents[2]


def checkpoint(folder: Path, module: dict[str, Any]) -> None:
    """A checkpoint of step 1 whose model file holds `module`."""
    step = folder / "global_step1"
    step.mkdir(parents=True)
    state = {"module": module, "client_state": {}, "iteration": 1}
    record = write_torch(step / "mp_rank_00_model_states.pt", state)
    write_manifest(step, 1, {"mp_rank_00_model_states.pt": record})
    (folder / "latest").write_text("global_step1")


def merge(folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "ckpts" / "merge_weights.py"), str(folder), str(output)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )


# The second is a module saved by ZeRO 3: its weights are in other files and empty here.
@pytest.mark.parametrize("module", [{}, {"readout.weight": torch.empty(0), "norm.weight": torch.empty(0)}])
def test_a_checkpoint_without_parameters_is_an_error(module: dict[str, Any], tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoints", module)
    done = merge(tmp_path / "checkpoints", tmp_path / "weights.pt")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "holds no parameters" in done.stderr and not (tmp_path / "weights.pt").exists()


def test_parameters_are_exported(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoints", {"norm.weight": torch.ones(3)})
    done = merge(tmp_path / "checkpoints", tmp_path / "weights.pt")
    assert done.returncode == 0 and "3 parameters of step 1" in done.stdout
    assert torch.equal(torch.load(tmp_path / "weights.pt", weights_only=True)["weights"]["norm.weight"], torch.ones(3))
