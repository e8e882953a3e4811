"""The scripts in examples/ run as they are printed, and give the results that they are for."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import pytest

from tests.training.harness import ROOT, configuration, environment, make_corpus

EXAMPLES = ROOT / "examples"

# Stands in for Slurm: runs a job at once, each task of an array in turn, and prints its number. It keeps what it was
# asked for, and refuses a dependency on a job that it has not run.
SBATCH = """\
#!/bin/bash
set -eu
number=$(($(ls "$JOBS" | wc -l) + 1)); tasks=0-0
for argument in "$@"; do
  case $argument in
    --array=*) tasks=${argument#--array=} ;;
    --dependency=afterok:*) test -f "$JOBS/${argument#--dependency=afterok:}" ;;
  esac
done
script=$(cat)
for task in $(seq ${tasks/-/ }); do
  SLURM_ARRAY_TASK_ID=$task bash -c "$script" >> "$JOBS/../log" 2>&1
done
echo "$@" > "$JOBS/$number"
echo "$number;cluster"
"""


def run(folder, *command, **variables):
    path = os.pathsep.join([*([str(folder / "bin")] if (folder / "bin").exists() else []), os.environ["PATH"]])
    path = os.pathsep.join([path.split(os.pathsep)[0], os.path.dirname(sys.executable), path])
    environ = environment(PATH=path, **variables)
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=600)
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + log[-2000:]
    return done.stdout


@pytest.mark.slow
def test_own_torch_model(tmp_path):
    printed = run(tmp_path, sys.executable, EXAMPLES / "own_torch_model.py", "--quick", "--out", "figures")
    assert printed.endswith("coordinate check: muP passes, SP fails, as it must\n")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"coord_check_mup.png", "coord_check_sp.png"}


def test_the_forecast_of_a_table_is_that_of_the_command(tmp_path):
    (tmp_path / "examples").symlink_to(EXAMPLES)
    printed = run(tmp_path, sys.executable, "examples/forecast_from_logs.py")
    target = int(re.search(r"TARGET = ([\d_]+)", (EXAMPLES / "forecast_from_logs.py").read_text())[1])
    ask = ("examples/ladder.csv", "--x", "params", "--y", "loss", "--target", target, "--fit-below", target / 1.5)
    command = [sys.executable, ROOT / "tools/scaling/predict_loss.py", *map(str, ask), "--json", "command.json"]
    run(tmp_path, *command)
    [expected] = json.loads((tmp_path / "command.json").read_text())["targets"]
    shown = re.search(r"parameters: ([\d.]+), 90% interval ([\d.]+) to ([\d.]+)", printed).groups()
    assert [f"{expected[key]:.3f}" for key in ("prediction", "low", "high")] == list(shown)
    assert "inside the interval" in printed and expected["inside"]
    assert (tmp_path / "runs/forecast_from_logs.png").stat().st_size > 10_000


def test_the_forecast_reads_folders_of_wandb(tmp_path):
    """Four offline runs of the real wandb on an exact law, and its value at the target."""
    pytest.importorskip("wandb")
    make = """
import sys, wandb
for size in (10, 20, 40, 80):
    run = wandb.init(mode="offline", dir=sys.argv[1], config={"params": size * 1000}, settings={"silent": True})
    for step in (10, 20):
        run.log({"valid/loss": 1.5 + size ** -0.5 + 1 / step}, step=step)
    run.finish()
"""
    subprocess.run([sys.executable, "-c", make, tmp_path], check=True, env=environment(WANDB_MODE="offline"))
    script = (EXAMPLES / "forecast_from_logs.py").read_text()
    for old, new in (
        ('["examples/ladder.csv"]', '["wandb"]'),
        ('"loss"  #', '"valid/loss"  #'),
        ("9_720_320", "320_000"),
    ):
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "mine.py").write_text(script)
    printed = run(tmp_path, sys.executable, "mine.py")
    predicted = float(re.search(r"320,000 parameters: ([\d.]+)", printed)[1])
    assert math.isclose(predicted, 1.5 + 320**-0.5 + 1 / 20, abs_tol=0.02), printed


def test_the_slurm_ladder_is_a_valid_script():
    assert subprocess.run(["bash", "-n", EXAMPLES / "slurm_ladder.sh"], check=False).returncode == 0


@pytest.mark.slow
def test_a_slurm_ladder_trains_its_widths_and_then_forecasts(tmp_path):
    for folder in ("bin", "jobs"):
        (tmp_path / folder).mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", '#!/bin/bash\nexec "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    corpus = make_corpus(tmp_path / "text")
    for name, width in (("proxy", 16), ("target", 128)):
        config = configuration(corpus, tmp_path / "log_dir", hidden_size=width, num_attention_heads=width // 16,
                               train_iters=150, eval_interval=150, eval_iters=10, log_interval=10)  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    variables = {"PROXY": "proxy.json", "TARGET": "target.json", "WIDTHS": "16 32 48 64", "SEEDS": "1"}
    printed = run(tmp_path, "bash", EXAMPLES / "slurm_ladder.sh", "--time=5", JOBS=str(tmp_path / "jobs"), **variables)
    assert printed == "job 1 trains widths 16 32 48 64; job 2 then writes runs/ladder.json and runs/ladder.png\n"
    assert len(list((tmp_path / "runs/ladder").glob("*/metrics.jsonl"))) == 4
    assert "--array=0-3" in (tmp_path / "jobs/1").read_text() and "--time=5" in (tmp_path / "jobs/1").read_text()
    assert json.loads((tmp_path / "runs/ladder.json").read_text())["targets"][0]["extrapolation"] > 1
    assert (tmp_path / "runs/ladder.png").is_file()
