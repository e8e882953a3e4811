"""Tests whether the best learning rate stays the same as the model widens, for muP and SP on the default corpus.

    python benchmarks/lr_transfer.py --out runs/lr_transfer --workers 2
    python benchmarks/lr_transfer.py --best runs/search_transfer/mup-proxy/best.yml      # around the winner of a search

The models are byte-level with 3 layers, head dimension 32, sequence length 128, batch size 8 and 200 steps. muP's base
width is 64. Every run is kept, and a restart trains only the missing ones. At the end, tools/mup/lr_landscape.py
evaluates all runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from _family import configuration, make_corpus, write

from megatron.neox_arguments.yaml_loader import load_config
from muneox.commands import lr_landscape, sweep


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lr_transfer"))
    parser.add_argument("--data", type=Path, default=Path("data/corpus_bytes"), help="prepared if missing")
    parser.add_argument(
        "--best", type=Path, help="best.yml of a search: the centre of muP's rates, and its other values"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument(
        "--octaves", type=float, nargs="+", default=[-2, -1.5, -1, -0.5, 0, 1], help="around muP's rate"
    )
    parser.add_argument("--sp-log2-lr", type=int, nargs="+", default=[-12, -11, -10, -9, -8, -7])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(input_args)
    make_corpus(options.data)
    model = write(options.out / "model.yml", configuration(options.data.resolve(), options.iters))
    middle = load_config(options.best).values["lr"] if options.best else 2.0**-7
    overlay = [str(options.best)] if options.best else []
    rates = {
        "mup": [*overlay, "--grid", "lr=" + ",".join(repr(middle * 2.0**k) for k in options.octaves)],
        "sp": ["--use-mup", "false", "--grid", "lr=" + ",".join(f"2^{k}" for k in options.sp_log2_lr)],
    }
    for name, own in rates.items():
        print(f"== {name}", flush=True)
        sweep.main([
            str(model), *own, "--widths", *map(str, options.widths), "--seeds", *map(str, options.seeds),
            "--workers", str(options.workers), "--out", str(options.out / name),
        ])  # fmt: skip
    return lr_landscape.main([
        *(str(options.out / name) for name in rates), "--out", str(options.out / "landscape"), "--max-drift", "0.15"
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
