"""`make demo`: from a fresh clone to a trained muP model and a sampled text. Prints every command before it runs it.

Corpus, base shapes, static audit, coordinate check, training of the target, sampling; everything lands in runs/demo.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from megatron.entry import run_script  # noqa: E402
from megatron.errors import UserError  # noqa: E402
from megatron.monitoring.jsonl import read_metrics  # noqa: E402

CONSOLE = Console()
CONFIGS = ("configs/mup/target.yml", "configs/local_setup.yml")
PROMPT = "import os\n\ndef read_file(path):\n"


def step(title: str, *arguments: str) -> None:
    """Run `python ARGUMENTS` in the project's folder; raise UserError, naming the step, where it fails."""
    CONSOLE.rule(title)
    CONSOLE.print("$ python " + " ".join(shlex.quote(argument) for argument in arguments), style="bold", soft_wrap=True)
    threads = os.environ.get("DEMO_THREADS", str(os.cpu_count() or 1))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False
    )
    if done.returncode:
        raise UserError(f"the step '{title}' failed with exit code {done.returncode}; its own message is above")
    CONSOLE.print(f"({time.monotonic() - began:.0f} s)", style="dim")


def summary(out: Path, seconds: float) -> None:
    """What the demo made, held against the corpus' own numbers."""
    corpus = json.loads((ROOT / "data/corpus/corpus.json").read_text())
    header, records = read_metrics(out / "metrics.jsonl")
    last = [record for record in records if "valid/loss" in record][-1]
    unigram, per_token = corpus["unigram_entropy"]["nats_per_token"], corpus["valid"]["bytes_per_token"]
    CONSOLE.rule("done")
    CONSOLE.print(
        f"{header['model']['params']:,} parameters, {last['tokens']:,} tokens, {seconds / 60:.1f} minutes\n"
        f"validation loss {last['valid/loss']:.3f} nats a token ({last['valid/loss'] / per_token:.3f} a byte); "
        f"unigram entropy of this text {unigram:.3f}\n"
        f"coordinate check  {out / 'coord_check_up.0.jpg'}  (muP)\n"
        f"                  {out / 'coord_check_sp.0.jpg'}  (standard parametrization, which fails)\n"
        f"metrics           {out / 'metrics.jsonl'}\n"
        f"checkpoint        {out / 'checkpoints'}\n"
        "next: README-MUP.md",
        soft_wrap=True,
        highlight=False,
    )


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="emptied first")
    parser.add_argument("--train-iters", type=int, default=400)
    options = parser.parse_args(input_args)
    out, began = options.out, time.monotonic()
    shutil.rmtree(ROOT / out, ignore_errors=True)
    shapes = ("--base-shapes-file", str(out / "base-shapes"))
    step("1/6 a corpus: the Python standard library's own source", "prepare_data.py")
    base = ("configs/mup/base.yml", CONFIGS[1])
    step("2/6 base shapes of the proxy, 64 wide", "deepy.py", "train.py", *base, *shapes, "--save-base-shapes")
    step("3/6 static audit of the target, 256 wide", "tools/mup/audit.py", *CONFIGS, *shapes, "--brief")
    check = ("--coord-check", "--log-dir", str(out))
    step("4/6 coordinate check: muP must pass, SP must fail", "deepy.py", "train.py", *CONFIGS, *shapes, *check)
    save = (
        "--save",
        str(out / "checkpoints"),
        "--log-dir",
        str(out),
        "--train-iters",
        str(options.train_iters),
    )
    step("5/6 train the target", "deepy.py", "train.py", *CONFIGS, *shapes, *save)
    load = (
        "--load",
        str(out / "checkpoints"),
        "--temperature",
        "0.7",
        "--top-k",
        "40",
        "--maximum-tokens",
        "120",
    )
    step("6/6 sample from it", "generate.py", *CONFIGS, *shapes, *load, "--prompt", PROMPT)
    summary(ROOT / out, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
