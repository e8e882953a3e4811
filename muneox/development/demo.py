"""`make demo`: from a fresh clone to a large model with a predicted loss, on a CPU.

The steps are: corpus, base shapes, static audit, coordinate check, a search on a narrow proxy, a ladder of widths with
the best hyperparameters, a forecast registered before the target is trained, the target's training, the comparison, a
report and a sample. Every command is printed before it runs. All results are in runs/demo.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from megatron.errors import UserError
from megatron.monitoring.jsonl import read_metrics

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = Console()
PROXY, TARGET, LOCAL = "configs/mup/base.yml", "configs/mup/target.yml", "configs/mup/demo.yml"
CORPUS = "data/corpus_bytes"
PROMPT = "def solve(equation):"
STEPS = 10


class Demo:
    """Runs the demo's commands in numbered steps. out: folder of all results, relative to the repository."""

    def __init__(self, out: Path, workers: int) -> None:
        self.out, self.workers, self._step = out, workers, 0
        self.began = time.monotonic()

    def at(self, name: str) -> str:
        return str(self.out / name)

    def step(self, title: str, *commands: Sequence[str], judges: bool = False) -> None:
        """Run `python COMMAND` for each command in the folder of the repository.

        judges: exit code 1 is a result, not a failure. Raises UserError, naming the step, if a command fails.
        """
        self._step += 1
        CONSOLE.rule(f"{self._step}/{STEPS} {title}")
        began = time.monotonic()
        for command in commands:
            CONSOLE.print("$ python " + shlex.join(command), style="bold", soft_wrap=True, highlight=False)
            code = self._run(command)
            if code and not (judges and code == 1):
                raise UserError(f"the step '{title}' failed with exit code {code}; its error message is above")
        CONSOLE.print(f"({time.monotonic() - began:.0f} s)", style="dim")

    def _run(self, command: Sequence[str]) -> int:
        """Run one process with all cores, or with one thread per process if the command starts workers."""
        threads = "1" if "--workers" in command else os.environ.get("DEMO_THREADS", str(os.cpu_count() or 1))
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode


def run_all(demo: Demo) -> None:
    """Run all steps of the demo."""
    at, workers = demo.at, ("--workers", str(demo.workers))
    shapes = ("--base-shapes-file", at("base-shapes"))
    best, forecast = at("search/best.yml"), at("forecast.json")
    demo.step(
        "a corpus: the source text of sympy, which torch needs",
        ("prepare_data.py", "--tokenizer", "byte", "--output-dir", CORPUS),
    )
    demo.step(
        "base shapes of the proxy, 64 wide", ("deepy.py", "train.py", PROXY, LOCAL, *shapes, "--save-base-shapes")
    )
    audit = ("tools/mup/audit.py", TARGET, LOCAL, *shapes, "--brief", "--json", at("audit.json"))
    demo.step("static audit of the target, 320 wide", audit)
    check = ("deepy.py", "train.py", TARGET, LOCAL, *shapes, "--coord-check", "--log-dir", demo.out.as_posix())
    demo.step("coordinate check: muP must pass, the standard parametrization must fail", check)
    search = ("tools/mup/search.py", PROXY, LOCAL, "--trials", "16", *workers, "--out", at("search"))
    demo.step("search hyperparameters on the proxy", (*search, "--target", TARGET, LOCAL))
    ladder = ("--widths", "32", "64", "96", "128", "160", "--seeds", "1", "2", *workers, "--out", at("ladder"))
    demo.step("a ladder of widths with the best hyperparameters", ("tools/mup/sweep.py", PROXY, LOCAL, best, *ladder))
    predict = ("tools/scaling/predict_loss.py", at("ladder"), "--x", "params", "--y", "valid/loss")
    target = ("--target-config", TARGET, LOCAL, "--save", forecast, "--plot", at("forecast.png"))
    demo.step("forecast the target's loss before it is trained", (*predict, *target))
    train = ("deepy.py", "train.py", TARGET, LOCAL, best, *shapes, "--log-dir", at("target"))
    demo.step("train the target once", (*train, "--save", at("checkpoints")))
    compare = ("tools/scaling/predict_loss.py", "--check", forecast, at("target"), "--json", at("outcome.json"))
    wider = ("tools/mup/width_check.py", at("ladder"), "--smooth", "mean:3", "--out", at("width_check"))
    demo.step("compare the forecast with the trained target; check that wider is better", compare, wider, judges=True)
    parts = ("--coord-check", at("coord_check.0.json"), "--audit", at("audit.json"), "--forecast", at("outcome.json"))
    runs = ("--search", at("search"), "--ladder", at("ladder"), "--target", at("target"), "--sample", at("sample.txt"))
    checks = ("--width-check", at("width_check.json"), "--out", at("report.html"))
    (ROOT / demo.out / "prompt.txt").write_text(PROMPT + "\n")
    sample = ("-i", at("prompt.txt"), "-o", at("sample.txt"), "--maximum-tokens", "300")
    generate = ("generate.py", "--load", at("checkpoints"), *sample)
    demo.step(
        "a sample of the target's text, and the report", generate, ("tools/scaling/report.py", *parts, *runs, *checks)
    )


def summary(out: Path, seconds: float) -> None:
    """Print the results of the demo and the unigram entropy of its corpus."""
    corpus = json.loads((ROOT / CORPUS / "corpus.json").read_text())
    header, records = read_metrics(out / "target/metrics.jsonl")
    last = [record for record in records if "valid/loss" in record][-1]
    target = json.loads((out / "outcome.json").read_text())["targets"][0]
    unigram = corpus["unigram_entropy"]["nats_per_token"]
    CONSOLE.rule("done")
    CONSOLE.print(
        f"forecast {target['prediction']:.3f} nats per byte, 90 % interval {target['low']:.3f} to "
        f"{target['high']:.3f}, from models up to 1/{target['extrapolation']:.1f} of the target's size\n"
        f"actual   {target['actual']:.3f} (unigram entropy of this text: {unigram:.3f}): "
        f"the forecast is {target['relative_error']:+.2%} off, "
        f"{'inside' if target['inside'] else 'OUTSIDE'} its interval\n"
        f"target   {header['model']['params']:,} parameters, {last['tokens']:,} tokens\n"
        f"time     {seconds / 60:.1f} minutes\n"
        f"report   {out / 'report.html'}  (one page, open it in a browser)\n"
        f"pictures {out / 'forecast.png'}, {out / 'width_check.png'}, {out / 'coord_check_up.0.jpg'} (muP), "
        f"{out / 'coord_check_sp.0.jpg'} (standard parametrization, which fails)\n"
        "next: README-MUP.md",
        soft_wrap=True,
        highlight=False,
    )


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results; emptied first")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="for the search and ladder")
    options = parser.parse_args(input_args)
    shutil.rmtree(ROOT / options.out, ignore_errors=True)
    (ROOT / options.out).mkdir(parents=True)
    demo = Demo(options.out, options.workers)
    run_all(demo)
    summary(ROOT / options.out, time.monotonic() - demo.began)
    return 0
